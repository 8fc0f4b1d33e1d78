"""Splits by image: never by row, so no evaluated image is trained on."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from pathlib import Path

from medr1_ray.types import Question


def split_by_image(
    questions: tuple[Question, ...], root: Path, eval_fraction: float, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Split into (train, evaluation), each with all questions of its images, in the order given.

    Within each modality the images are ranked by a hash of the seed and their path relative to `root`, and
    the first `eval_fraction` of them is held out: at least one, and never all, of a modality with two images
    or more.
    """
    images: dict[str, set[str]] = defaultdict(set)
    modality_of: dict[str, str] = {}
    for question in questions:
        # An image that two modalities claim belongs to the first that does.
        images[modality_of.setdefault(question.image_path, question.modality)].add(question.image_path)
    held_out: set[str] = set()
    for paths in images.values():
        ranked = sorted(paths, key=lambda path: _hash(seed, os.path.relpath(path, os.path.abspath(root))))
        wanted = max(1, round(eval_fraction * len(ranked)))
        held_out.update(ranked[: min(wanted, len(ranked) - 1)])
    train = tuple(question for question in questions if question.image_path not in held_out)
    evaluation = tuple(question for question in questions if question.image_path in held_out)
    return train, evaluation


def _hash(seed: int, path: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{Path(path).as_posix()}".encode(), digest_size=16).digest()
