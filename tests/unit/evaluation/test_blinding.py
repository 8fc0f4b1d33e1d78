"""The prompts of an evaluation: encoded as they are asked for, with blank images, and with images of others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from medr1_ray.evaluation.blinding import EvaluationPrompts, NoLongerReadableError
from medr1_ray.types import Prompt
from tests.unit.evaluation.pictures import Encoder, questions

LONG = "prompt too long"


def of_files(files: list[int], encoder: Encoder | None = None, said: list[str] | None = None) -> EvaluationPrompts:
    return EvaluationPrompts(questions(files), encoder or Encoder(), [].append if said is None else said.append)


def images(prompts: Iterable[Prompt] | None) -> list[int]:
    assert prompts is not None
    return [int(prompt.image[0, 0, 0]) for prompt in prompts]


def test_blank_images_keep_the_size() -> None:
    (prompt,) = of_files([7]).with_blank_images()
    assert prompt.image.shape == (2, 2, 3)
    assert not prompt.image.any()


@pytest.mark.parametrize("files", [[1, 2], [1, 1, 1, 2, 3, 4], [i // 4 for i in range(40)]])
def test_shuffled_images_are_all_used_and_none_is_the_own(files: list[int]) -> None:
    prompts = of_files(files)
    shuffled = list(prompts.with_shuffled_images(seed=0) or ())
    assert [prompt.id for prompt in shuffled] == [prompt.id for prompt in prompts]
    assert [prompt.question for prompt in shuffled] == list(questions(files)), "the file in it is the question's own"
    assert sorted(images(shuffled)) == sorted(files)
    assert all(new != old for new, old in zip(images(shuffled), files, strict=True))


def test_shuffled_images_do_not_come_from_neighbours_only() -> None:
    found = images(of_files(list(range(100))).with_shuffled_images(seed=0))
    # A random assignment of 100 has a mean distance of 33.
    assert np.mean([abs(image - i) for i, image in enumerate(found)]) > 20


def test_images_cannot_be_shuffled_when_most_questions_share_one() -> None:
    assert of_files([1, 1, 1, 2, 3]).with_shuffled_images(seed=0) is None
    assert of_files([1]).with_shuffled_images(seed=0) is None


def test_questions_that_cannot_be_asked_are_left_out_of_all_alike_and_told_once() -> None:
    said: list[str] = []
    encoder = Encoder({"q0": LONG, "q2": LONG, "q3": "image unreadable"})
    prompts = of_files([1, 2, 3, 4, 5], encoder, said)
    for _ in range(2):
        assert [prompt.id for prompt in prompts] == ["evaluation:q1", "evaluation:q4"]
    assert said == [f"evaluation: 2 questions left out: {LONG}", "evaluation: 1 questions left out: image unreadable"]
    assert images(prompts.with_blank_images()) == [0, 0]
    assert images(prompts.with_shuffled_images(seed=0)) == [5, 2], "of the two that can be asked"
    del encoder.refused["q3"]
    assert len(list(prompts)) == 2, "the first time decides"
    assert len(said) == 2


def test_another_set_of_questions_would_be_another_evaluation() -> None:
    """A file system that is gone for a while must not leave the accuracy of those that could be read."""
    encoder = Encoder()
    prompts = of_files([1, 2, 3, 4], encoder)
    assert len(list(prompts)) == 4
    encoder.refused["q2"] = "image unreadable"
    for asked in (prompts, prompts.with_blank_images(), prompts.with_shuffled_images(seed=0)):
        assert asked is not None
        with pytest.raises(NoLongerReadableError, match=r"no longer be asked: image unreadable \(q2\); it could"):
            list(asked)
    encoder.refused.clear()
    assert len(list(prompts)) == 4


def test_no_question_at_all_is_an_error() -> None:
    prompts = of_files([1, 2], Encoder({"q0": LONG, "q1": LONG}))
    with pytest.raises(ValueError, match=r"none of the 2 evaluation questions can be a prompt \(prompt too long: 2\)"):
        next(iter(prompts))


def test_only_the_images_that_come_next_are_decoded_ahead() -> None:
    encoder = Encoder()
    prompts = iter(of_files([1] * 200, encoder))
    next(prompts)
    assert [len(each) for each in encoder.begun] == [128]
    assert len(list(prompts)) == 199
    assert [(each[0], len(each)) for each in encoder.begun] == [("q0", 128), ("q64", 128), ("q128", 72), ("q192", 8)]
