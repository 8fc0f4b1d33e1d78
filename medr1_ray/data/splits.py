"""Splits by image or by groups of images, never by row, so that no evaluation image is trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medr1_ray.data.readers.rows import relative_path
from medr1_ray.types import Question


def split_by_image(
    questions: tuple[Question, ...],
    root: Path,
    eval_fraction: float,
    seed: int,
    groups: Sequence[str | None] | None = None,
) -> Division:
    """Split into training and evaluation, each with all questions about its images, in the order given.

    `groups` names what must not be divided, e.g. the patient of each question; None where nothing is known. `hold_out`
    chooses the evaluation's groups within each modality, images that are in no group by their paths relative to `root`.
    """
    paths = [relative_path(root, question.image_path) for question in questions]
    keys = paths
    if groups is not None:
        names = [f"group {group}" if group else f"image {path}" for group, path in zip(groups, paths, strict=True)]
        keys = linked([(f"image {path}", name) for path, name in zip(paths, names, strict=True)])
    modality_of: dict[str, str] = {}
    images: defaultdict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for question, path, key in zip(questions, paths, keys, strict=True):
        # A group with questions of two modalities counts for the first of them.
        images[modality_of.setdefault(key, question.modality)][key].add(path)
    sizes = {modality: {key: len(held) for key, held in of.items()} for modality, of in images.items()}
    fractions = {"evaluation": eval_fraction}
    held_out = {key: part for of in sizes.values() for key, part in hold_out(of, fractions, seed).items()}
    sides: dict[bool, list[Question]] = {False: [], True: []}
    for question, key in zip(questions, keys, strict=True):
        sides[key in held_out].append(question)
    every = {key: size for of in sizes.values() for key, size in of.items()}
    return Division(
        tuple(sides[False]),
        tuple(sides[True]),
        departure(every, held_out, fractions, len(sizes)),
        _never_held_out(sizes, held_out),
    )


@dataclass(frozen=True)
class Division:
    """Both sides of a split, and a sentence if the evaluation has come out far from its fraction, or without some
    modality."""

    train: tuple[Question, ...]
    evaluation: tuple[Question, ...]
    departure: str | None
    never_held_out: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """These sentences."""
        return tuple(filter(None, (self.departure, self.never_held_out)))


def _never_held_out(sizes: Mapping[str, Mapping[str, int]], held_out: Mapping[str, str]) -> str | None:
    """Return a sentence on the modalities that the evaluation has nothing of; None where it is empty, or has all."""
    missing = [modality for modality, of in sizes.items() if not of.keys() & held_out.keys()]
    if not missing or not held_out:
        return None
    counts = ", ".join(f"{modality} ({sum(sizes[modality].values())} images)" for modality in missing)
    return (
        f"evaluation has nothing of {counts}: all in one group that stays whole, and so in training; a second patient, "
        "or image, would be held out"
    )


def linked(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return, for each pair of names, the smallest name that it is connected with, directly or through other pairs."""
    parent: dict[str, str] = {}

    def find(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            # Path halving keeps the chains short.
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in pairs:
        first, second = sorted((find(one), find(other)))
        parent[second] = first
    return [find(one) for one, _ in pairs]


def departure(
    sizes: Mapping[str, int], part_of: Mapping[str, str], fractions: Mapping[str, float], modalities: int
) -> str | None:
    """Return a sentence if parts are empty or far from the fraction of images that they should have; otherwise None.

    Far is more than one image and more than half of what the part should have, too many or too few.

    Args:
        sizes: number of images in each group.
        part_of: part of each group that is held out.
        fractions: what each part should have.
        modalities: how many there are, each of which was divided on its own.
    """
    total = sum(sizes.values())
    found = []
    for part, fraction in fractions.items():
        got, wanted = sum(size for key, size in sizes.items() if part_of.get(key) == part), fraction * total
        if not got or abs(got - wanted) > max(1, wanted / 2):
            found.append(f"{part} has {got} of {total} images instead of {fraction:.0%}")
    if not found:
        return None
    largest = max(sizes, key=lambda key: sizes[key])
    return (
        f"{', '.join(found)}; the images are in {len(sizes)} group{'s' * (len(sizes) != 1)} that stay whole, the "
        f"largest ({largest}) has {sizes[largest]}"
        + (f", and each of {modalities} modalities is divided on its own" if modalities > 1 else "")
    )


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
