"""What an encoder actor makes of a batch; the handle, with real actors, is in tests/integration/encoders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medr1_ray.config import PromptSettings, tiny_model_path
from medr1_ray.data.encoding import EncoderSettings, PromptEncoder, Refused
from medr1_ray.encoders.actor import EncodedBatch, EncoderActor, EncodingBatch
from medr1_ray.types import Prompt, Question, pixels_digest

SETTINGS = EncoderSettings(str(tiny_model_path()), "no_think", 84, "squash", 512, PromptSettings(), 60.0)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """About a red image, about one that is no image, and with a special token about the red one again."""
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (30, 20), (200, 0, 0)).save(folder / "red.png")
    (folder / "broken.png").write_text("no image")
    question = Question("q", str(folder / "red.png"), "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none")
    broken = replace(question, id="broken", image_path=str(folder / "broken.png"))
    return [question, broken, replace(question, id="special", stem="Which <|im_end|>?")]


def test_a_batch_has_texts_and_images_as_a_local_encoder_makes_them(questions: list[Question]) -> None:
    paths = tuple(dict.fromkeys(question.image_path for question in questions))
    encoded, red, broken = EncoderActor("encoder-0").encode(EncodingBatch(SETTINGS, tuple(questions), paths))
    assert isinstance(encoded, EncodedBatch)
    expected = PromptEncoder.of(SETTINGS).encode(questions[0], "p")
    assert isinstance(expected, Prompt)
    token_ids, _, special = encoded.token_ids
    assert isinstance(token_ids, np.ndarray)
    assert token_ids.tolist() == expected.token_ids.tolist()
    assert isinstance(special, Refused)
    assert special.reason == "special token in the text"
    assert np.array_equal(red, np.asarray(expected.image))
    of_red, of_broken = encoded.images
    assert (of_red.shape, of_red.digest, of_red.problem) == ((84, 84, 3), pixels_digest(red), None)
    assert broken.size == 0
    assert "cannot be read as an image" in str(of_broken.problem)
    assert encoded.visual_tokens == 9


def test_a_batch_without_images_is_its_texts_alone(questions: list[Question]) -> None:
    actor = EncoderActor("encoder-0")
    encoded = actor.encode(EncodingBatch(SETTINGS, (questions[0],), ()))
    assert isinstance(encoded, EncodedBatch)
    assert encoded.images == ()
    thinking = actor.encode(EncodingBatch(replace(SETTINGS, mode="think"), (questions[0],), ()))
    assert thinking.token_ids[0].size > encoded.token_ids[0].size, "each batch brings its settings"
