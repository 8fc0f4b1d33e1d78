"""Splits by image or by groups of images: never by row, so no evaluated image is trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from medr1_ray.data.readers.rows import relative_path
from medr1_ray.types import Question


def split_by_image(
    questions: tuple[Question, ...], root: Path, eval_fraction: float, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Split into (train, evaluation), each with all questions of its images, in the order given.

    `hold_out` chooses the images of each modality, by their path relative to `root`.
    """
    images: dict[str, dict[str, int]] = defaultdict(dict)
    modality_of: dict[str, str] = {}
    for question in questions:
        # An image that two modalities claim belongs to the first that does.
        modality = modality_of.setdefault(question.image_path, question.modality)
        images[modality][relative_path(root, question.image_path)] = 1
    held_out = {
        path for sizes in images.values() for path in hold_out(sizes, {"evaluation": eval_fraction}, seed)
    }
    sides: dict[bool, list[Question]] = {False: [], True: []}
    for question in questions:
        sides[relative_path(root, question.image_path) in held_out].append(question)
    return tuple(sides[False]), tuple(sides[True])


def hold_out(sizes: Mapping[str, int], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The part of each group that is held out; those left are for training.

    Args:
        sizes: images in each group, by a key that stays when the data moves or grows.
        fractions: share of the images that each part is to have.
        seed: of the hash of the keys by which the groups are ranked.

    Each part in turn takes the groups in their rank that still fit into its share; where none does, the smallest one.
    So each part has at least one group, and never all, where there are enough.
    """
    left = sorted(sizes, key=lambda key: hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=16).digest())
    total = sum(sizes.values())
    parts: dict[str, str] = {}
    for part, fraction in fractions.items():
        room = max(1, round(fraction * total))
        taken: set[str] = set()
        for key in left:
            if sizes[key] <= room and len(left) - len(taken) > 1:
                taken.add(key)
                room -= sizes[key]
        if not taken and len(left) > 1:
            taken.add(min(left, key=lambda key: sizes[key]))
        parts |= dict.fromkeys(taken, part)
        left = [key for key in left if key not in taken]
    return parts
