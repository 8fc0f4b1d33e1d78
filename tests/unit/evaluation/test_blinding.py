"""Blank and shuffled images."""

from __future__ import annotations

import numpy as np
import pytest

from medr1_ray.evaluation.blinding import with_blank_images, with_shuffled_images
from medr1_ray.types import Prompt, Question


def _prompts(files: list[str]) -> list[Prompt]:
    """Return one prompt per entry; every pixel of its image is the number of the file."""
    names = sorted(set(files))
    return [
        Prompt(
            id=str(i),
            question=Question(str(i), file, "stem", ("x", "y"), 0, "CT", "Anatomy Identification", "d"),
            token_ids=np.array([1, 2], np.int32),
            image=np.full((2, 2, 3), names.index(file), np.uint8),
        )
        for i, file in enumerate(files)
    ]


def test_blank_images_keep_the_size() -> None:
    (prompt,) = with_blank_images(_prompts(["a"]))
    assert prompt.image.shape == (2, 2, 3)
    assert not prompt.image.any()


@pytest.mark.parametrize("files", [["a", "b"], ["a", "a", "a", "b", "c", "d"], [f"f{i // 4}" for i in range(40)]])
def test_shuffled_images_are_all_used_and_none_is_the_own(files: list[str]) -> None:
    prompts = _prompts(files)
    shuffled = with_shuffled_images(prompts, seed=0)
    assert shuffled is not None
    assert [prompt.id for prompt in shuffled] == [prompt.id for prompt in prompts]
    assert sorted(p.image[0, 0, 0] for p in shuffled) == sorted(p.image[0, 0, 0] for p in prompts)
    assert all(new.image[0, 0, 0] != old.image[0, 0, 0] for new, old in zip(shuffled, prompts, strict=True))


def test_shuffled_images_do_not_come_from_neighbours_only() -> None:
    prompts = _prompts([f"f{i:03d}" for i in range(100)])
    shuffled = with_shuffled_images(prompts, seed=0)
    assert shuffled is not None
    distance = [abs(int(new.image[0, 0, 0]) - i) for i, new in enumerate(shuffled)]
    assert np.mean(distance) > 20  # a random assignment of 100 has a mean distance of 33


def test_images_cannot_be_shuffled_when_most_questions_share_one() -> None:
    assert with_shuffled_images(_prompts(["a", "a", "a", "b", "c"]), seed=0) is None
    assert with_shuffled_images(_prompts(["a"]), seed=0) is None
