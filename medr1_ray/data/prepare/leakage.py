"""Leakage of a split: what its held-out questions share with training, and how many can be answered blindly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medr1_ray.data.blind_prior import BlindPrior
from medr1_ray.data.readers.manifest import ManifestRow

NEAR_BITS = 8
"""Two images are near-duplicates if at most this many of the 64 bits of their perceptual hashes differ. Among 148 real
images, many neighbouring slices of a volume are that close, and no two images of different scans are closer than 16."""
_BLOCK = 2**24  # pairs of hashes compared at once, which bounds memory


@dataclass(frozen=True)
class Leakage:
    """Leakage from training into a held-out part, as fractions in [0, 1] of the held-out questions (not of images).

    Args:
        questions: number of held-out questions.
        shared_image: the pixels of the question's image are in training.
        near_duplicate: an image that looks alike (`NEAR_BITS`), or the same one, is in training; None if the images
            were not read.
        shared_scan: an image of the same patient or volume, as far as paths tell, is in training.
        repeated_prompt: the question's exact text, including options, is in training.
        blind_prior: accuracy of the blind prior fitted to the training questions.
        chance: accuracy of a random choice.
    """

    questions: int
    shared_image: float
    near_duplicate: float | None
    shared_scan: float
    repeated_prompt: float
    blind_prior: float
    chance: float

    @property
    def description(self) -> str:
        """Summary in one line, for the terminal."""
        near = "unknown" if self.near_duplicate is None else f"{self.near_duplicate:.1%}"
        return (
            f"{self.questions} questions: image in training {self.shared_image:.1%}, near-duplicate {near}, patient or "
            f"volume {self.shared_scan:.1%}, prompt {self.repeated_prompt:.1%}; blind prior {self.blind_prior:.1%}, "
            f"chance {self.chance:.1%}"
        )


def leakage(train: Sequence[ManifestRow], held_out: Sequence[ManifestRow]) -> Leakage | None:
    """Return the leakage from `train` to `held_out` (rows that were not left out); None if either is empty."""
    if not train or not held_out:
        return None
    nowhere = Path()  # image paths are not compared
    trained, asked = ([row.question(nowhere) for row in rows] for rows in (train, held_out))
    images, scans = {row.image_hash for row in train}, {row.scan for row in train}
    texts = {question.text for question in trained}
    count = len(held_out)
    return Leakage(
        questions=count,
        shared_image=sum(row.image_hash in images for row in held_out) / count,
        near_duplicate=_near_duplicates(train, held_out),
        shared_scan=sum(row.scan in scans for row in held_out) / count,
        repeated_prompt=sum(question.text in texts for question in asked) / count,
        blind_prior=BlindPrior.fit(trained).accuracy(asked),
        chance=sum(1 / len(question.options) for question in asked) / count,
    )


def _near_duplicates(train: Sequence[ManifestRow], held_out: Sequence[ManifestRow]) -> float | None:
    if any(row.perceptual_hash is None for row in (*train, *held_out)):
        return None
    trained = np.unique(_perceptual_hashes(train))
    # Several questions share an image; each image is compared once.
    asked, of_question = np.unique(_perceptual_hashes(held_out), return_inverse=True)
    rows_at_once = max(1, _BLOCK // len(trained))
    near: list[NDArray[np.bool_]] = [
        (np.bitwise_count(asked[start : start + rows_at_once, None] ^ trained) <= NEAR_BITS).any(axis=1)
        for start in range(0, len(asked), rows_at_once)
    ]
    return float(np.concatenate(near)[of_question].mean())


def _perceptual_hashes(rows: Sequence[ManifestRow]) -> NDArray[np.uint64]:
    return np.array([int(str(row.perceptual_hash), 16) for row in rows], np.uint64)
