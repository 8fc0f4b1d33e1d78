"""Splits by image or by groups of images, never by row, so that no evaluation image is trained on."""

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
    """Split into (train, evaluation), each with all questions about its images, in the order given.

    `hold_out` chooses the evaluation images of each modality by their paths relative to `root`.
    """
    images: dict[str, dict[str, int]] = defaultdict(dict)
    modality_of: dict[str, str] = {}
    for question in questions:
        # An image with questions of two modalities counts for the first of them.
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
    """Return the part of each group that is held out; groups that are not in the result are for training.

    Args:
        sizes: number of images in each group, by a key that does not change when the data moves or grows.
        fractions: share of all images that each part should get.
        seed: seed of the hash of the keys, by which the groups are ranked.

    Each part in turn takes, in rank order, the groups that still fit into its share, or the smallest group if none
    fits. So with enough groups each part gets at least one, and training keeps at least one.
    """
    # A hash and not a shuffle, so that the rank of a group does not depend on which others exist.
    left = sorted(sizes, key=lambda key: hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=16).digest())
    total = sum(sizes.values())
    parts: dict[str, str] = {}
    for part, fraction in fractions.items():
        room = max(1, round(fraction * total))
        taken: set[str] = set()
        for key in left:
            # The last group stays for training.
            if sizes[key] <= room and len(left) - len(taken) > 1:
                taken.add(key)
                room -= sizes[key]
        if not taken and len(left) > 1:
            taken.add(min(left, key=lambda key: sizes[key]))
        parts |= dict.fromkeys(taken, part)
        left = [key for key in left if key not in taken]
    return parts
