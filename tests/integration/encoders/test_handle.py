"""Encoder actors in real processes: what comes of the questions, ahead or not, and when one is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from medr1_ray.config import Config
from medr1_ray.data.dataset import Dataset
from medr1_ray.data.encoding import PromptEncoder, Refused
from medr1_ray.encoders import handle as module
from medr1_ray.encoders.handle import EncoderActors, RemoteEncoder, data_files
from medr1_ray.types import Prompt, Question, StoredImage, all_pixels, pixels_of


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": tmp_path_factory.mktemp("run")},
            "data": {"format": "phantoms", "root": "unused", "image_size": 84, "encoders": 2},
            "train": {"steps": 1},
        }
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """40 about 20 images; number 7's is not one."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(20):
        Image.new("RGB", (30, 20), (10 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "7.png").write_text("no image")
    first = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none")
    made = [replace(first, id=f"q{i}", image_path=str(folder / f"{i % 20}.png")) for i in range(40)]
    return [*made[:5], replace(made[5], stem="Which <|im_end|>?"), *made[6:]]


@pytest.fixture(scope="module")
def actors(ray_cluster: None, config: Config) -> Iterator[EncoderActors]:
    actors = EncoderActors(config)
    yield actors
    for actor in actors._actors:
        ray.kill(actor)


@pytest.fixture
def sent(actors: EncoderActors, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Questions and images of each call."""
    sent: list[tuple[int, int]] = []
    encode = actors.encode

    def watched(batch: Any, meanwhile: Any) -> Any:
        sent.append((len(batch.questions), len(batch.images)))
        return encode(batch, meanwhile)

    monkeypatch.setattr(actors, "encode", watched)
    return sent


def test_prompts_are_those_of_a_local_encoder_with_images_in_the_object_store(
    actors: EncoderActors, config: Config, questions: list[Question], sent: list[tuple[int, int]]
) -> None:
    remote, local = RemoteEncoder(actors, config), PromptEncoder.of(config)
    asked = [(question, f"p{i}") for i, question in enumerate(questions)]
    remote.begin(asked)
    assert sent == [(16, 16), (16, 4), (8, 0)], "an image is decoded once"
    remote.begin(asked)
    for each in asked:
        found, expected = remote.encode(*each), local.encode(*each)
        if isinstance(expected, Refused):
            assert found == expected
            continue
        assert isinstance(found, Prompt)
        assert (found.id, found.question) == (expected.id, expected.question)
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert isinstance(found.image, StoredImage)
        assert found.image.shape == (84, 84, 3)
        assert np.array_equal(pixels_of(found.image), pixels_of(expected.image))
    # The file that is not an image is tried again for its second question.
    assert sent[3:] == [(0, 1)]
    assert remote.visual_tokens == local.visual_tokens
    first, again = remote.encode(questions[0], "a"), remote.encode(questions[20], "b")
    assert isinstance(first, Prompt)
    assert isinstance(again, Prompt)
    assert first.image == again.image, "one object for two questions"


def test_what_is_named_no_more_is_forgotten_and_what_was_evicted_comes_again(
    actors: EncoderActors,
    config: Config,
    questions: list[Question],
    sent: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "IMAGE_CACHE_BYTES", 1)
    remote = RemoteEncoder(actors, config)
    remote.begin([(questions[0], "a"), (questions[1], "b")])
    remote.begin([(questions[1], "b"), (questions[2], "c")])
    assert sent == [(2, 2), (1, 1)]
    assert list(remote._begun) == ["b", "c"]
    remote.begin([])
    assert (remote._begun, len(remote._images)) == ({}, 0)
    assert isinstance(remote.encode(questions[1], "b"), Prompt)
    assert sent[2:] == [(1, 1)]
    # Other options under the same id are another prompt.
    remote.begin([(questions[3], "d")])
    shuffled = replace(questions[3], options=("MRI", "CT"), answer=1)
    found = remote.encode(shuffled, "d")
    assert isinstance(found, Prompt)
    assert found.question == shuffled


def test_an_actor_that_is_killed_is_started_again_and_its_images_outlast_it(
    actors: EncoderActors, config: Config, questions: list[Question]
) -> None:
    remote = RemoteEncoder(actors, config)
    before = remote.encode(questions[0], "before")
    assert isinstance(before, Prompt)
    for actor in actors._actors:
        os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
    remote.begin([(question, question.id) for question in questions[:5]])
    after = [remote.encode(question, question.id) for question in questions[:5]]
    assert all(isinstance(prompt, Prompt) for prompt in after)
    assert np.array_equal(pixels_of(before.image), pixels_of(after[0].image))  # type: ignore[union-attr]


def test_an_encoder_that_does_not_answer_is_an_error_with_the_settings(
    actors: EncoderActors, config: Config, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "_deadline_seconds", 0.5)
    stopped = [ray.get(actor.__ray_call__.remote(lambda self: os.getpid())) for actor in actors._actors]
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(RuntimeError, match=r"not encoded within 0\.5 s.*data\.image_timeout_seconds"):
            RemoteEncoder(actors, config).encode(questions[0], "a")
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)


def test_the_driver_looks_after_others_while_it_waits_for_an_encoder(
    actors: EncoderActors, config: Config, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "_deadline_seconds", 60.0)
    stopped = [ray.get(actor.__ray_call__.remote(lambda self: os.getpid())) for actor in actors._actors]
    remote = RemoteEncoder(actors, config)
    # Begun before anybody has said what is to be done meanwhile.
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    remote.begin([(questions[0], "a"), (questions[1], "b")])
    looks: list[str] = []

    def look_after_others() -> None:
        looks.append("a look")
        if len(looks) == 3:
            for process in stopped:
                os.kill(process, signal.SIGCONT)

    remote.meanwhile = look_after_others
    try:
        # They answer only after the third look.
        assert isinstance(remote.encode(questions[0], "a"), Prompt)
        assert len(looks) >= 3
        looks.clear()
        assert isinstance(remote.encode(questions[1], "b"), Prompt)
        assert not looks, "of the same batch, which is there"
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)


def test_an_image_that_many_prompts_have_is_stored_once(actors: EncoderActors, config: Config) -> None:
    black = RemoteEncoder(actors, config).keep(np.zeros((2, 3, 3), np.uint8))
    assert isinstance(black, StoredImage)
    assert (black.shape, pixels_of(black).tolist()) == ((2, 3, 3), np.zeros((2, 3, 3)).tolist())
    at_hand = np.ones((1, 1, 3), np.uint8)
    assert [pixels.shape for pixels in all_pixels([at_hand, black, at_hand])] == [(1, 1, 3), (2, 3, 3), (1, 1, 3)]


def test_encoders_on_other_nodes_must_see_the_data(
    ray_cluster: None, config: Config, questions: list[Question], tmp_path: Path
) -> None:
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    labels = config.cluster.labels.model_copy(update={"encoder": here})
    elsewhere = config.model_copy(update={"cluster": config.cluster.model_copy(update={"labels": labels})})
    read = Dataset(tuple(questions), (), ())
    files = data_files(elsewhere, read)
    assert (data_files(config, read), [file.path for file in files]) == ((), [Path(questions[0].image_path)])
    found = RemoteEncoder(EncoderActors(elsewhere, files), elsewhere).encode(questions[0], "a")
    assert isinstance(found, Prompt)
    other = replace(files[0], path=tmp_path / "not_there.png")
    with pytest.raises(RuntimeError, match=r"ValueError: data\.root=.* is not the same folder on all nodes"):
        RemoteEncoder(EncoderActors(elsewhere, (other,)), elsewhere).encode(questions[0], "a")
