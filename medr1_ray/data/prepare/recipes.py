"""Recipes that split a manifest into training, validation and test: grouped, the data's own, Med-R1's released ones."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medr1_ray.data.prepare.scans import groups_of
from medr1_ray.data.questions import MODALITIES, QUESTION_TYPES
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.medr1 import read_medr1_rows
from medr1_ray.data.readers.prepared import PARTS, Split
from medr1_ray.data.readers.rows import relative_path
from medr1_ray.data.splits import departure, hold_out

FRACTIONS = {"test": 0.2, "validation": 0.05}
"""Shares of the images of each modality; Med-R1 tests on a fifth, too."""


def grouped_splits(rows: Sequence[ManifestRow], seed: int) -> Iterator[Split]:
    """Yield `grouped`, with all modalities and question types, then its subset for each modality and question type.

    Every group of `groups_of` is entirely in one part, the same one in all these splits, so a model trained on one of
    them may be tested on any other. Rows that were left out are in no part.
    """
    used = [row for row in rows if row.left_out is None]
    by_modality: defaultdict[str, dict[str, int]] = defaultdict(dict)
    groups = groups_of(used)
    for key, members in groups.items():
        # The most frequent one; names break ties, so that the order of the rows does not matter.
        modality = min(Counter(str(row.modality) for row in members).items(), key=lambda item: (-item[1], item[0]))[0]
        by_modality[modality][key] = _images(members)
    held_out = {
        key: part for sizes in by_modality.values() for key, part in hold_out(sizes, FRACTIONS, seed).items()
    }
    part_of = {row.id: held_out.get(key, "train") for key, members in groups.items() for row in members}
    recipe = "whole groups of images with the same pixels, patient or volume; 75/5/20 % of each modality's images"
    yield from _with_subsets("grouped", recipe, seed, used, part_of)


def own_splits(rows: Sequence[ManifestRow], part_of: Mapping[str, str]) -> Iterator[Split]:
    """Yield `own`, the parts that the data itself names for each row by id, then its subsets like `grouped_splits`."""
    used = [row for row in rows if row.left_out is None]
    yield from _with_subsets("own", "the data's own parts", None, used, part_of)


def empty_or_far(split: Split, rows: Sequence[ManifestRow]) -> str | None:
    """Return a sentence if parts of a split are empty or, where they were drawn, far from their fractions."""
    if split.seed is None:
        empty = [part for part in PARTS if not split.parts[part]]
        return f"no question in {' and '.join(empty)}" if empty else None
    chosen = {id_: part for part, ids in split.parts.items() for id_ in ids}
    used = [row for row in rows if row.id in chosen]
    groups = groups_of(used)
    # Under the name of the patient or volume, which says more than the key.
    sizes = {str(members[0].scan): _images(members) for members in groups.values()}
    parts = {str(members[0].scan): chosen[members[0].id] for members in groups.values()}
    return departure(sizes, parts, FRACTIONS, len({row.modality for row in used}))


def _images(rows: Sequence[ManifestRow]) -> int:
    return len({row.image_hash for row in rows})


def _with_subsets(
    name: str, recipe: str, seed: int | None, used: Sequence[ManifestRow], part_of: Mapping[str, str]
) -> Iterator[Split]:
    def split(name: str, only: str, chosen: Sequence[ManifestRow]) -> Split:
        parts = {part: tuple(row.id for row in chosen if part_of[row.id] == part) for part in PARTS}
        return Split(name, recipe + only, seed, parts, {})

    yield split(name, "", used)
    for kind, names, of in (
        ("modality", MODALITIES, [str(row.modality) for row in used]),
        ("type", QUESTION_TYPES, [str(row.question_type) for row in used]),
    ):
        # Names that differ only in case and signs share a file, and so a split.
        together: defaultdict[str, list[str]] = defaultdict(list)
        for each in (*names, *sorted(set(of) - set(names))):
            together[slug(each)].append(each)
        for short, each in together.items():
            if chosen := [row for row, value in zip(used, of, strict=True) if value in each]:
                present = " and ".join(value for value in each if value in of)
                yield split(f"{kind}-{short}", f"; {present} only", chosen)


def released_splits(rows: Sequence[ManifestRow], root: Path, folder: Path) -> Iterator[Split]:
    """Yield Med-R1's own splits, one for every folder with training and test files: `folder` and those in it.

    The only split, or that of the folder `modality`, is named `medr1`; the others are named `medr1-<folder>`. Each
    family of files was split on its own, so the test files of one contain rows that another trains on. A released row
    is matched to a row of the manifest by image path, question, options and answer; rows without a match are counted.

    Raises:
        ValueError: if `folder` holds no such files, or one of them is not a list of rows.
    """
    families = released_families(folder)
    for family, files in families.items():
        name = "medr1" if family.name == "modality" or len(families) == 1 else f"medr1-{slug(family.name)}"
        yield _released_split(name, rows, root, dict(zip(("train", "test"), files, strict=True)))


def released_families(folder: Path) -> dict[Path, list[list[Path]]]:
    """Return the training and test files of every folder with both: `folder` and those in it.

    Raises:
        ValueError: if there are none.
    """
    families = {
        family: files
        for family in [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        if all(files := [_released_files(family, part) for part in ("train", "test")])
    }
    if not families:
        raise ValueError(
            f"--medr1 {folder}: neither this folder nor one in it holds train/*.json and test/*.json (or train*.json "
            "and test*.json); give the folder of Med-R1's released annotation files"
        )
    return families


def slug(name: str) -> str:
    """Return the name in lower case with dashes, for use in a file name."""
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")


def _released_files(family: Path, part: str) -> list[Path]:
    return sorted((family / part).glob("*.json")) or sorted(family.glob(f"{part}*.json"))


def _released_split(
    name: str, rows: Sequence[ManifestRow], root: Path, files: dict[str, list[Path]]
) -> Split:
    free: defaultdict[object, list[str]] = defaultdict(list)
    for row in reversed(rows):  # so that `pop` takes equal rows in the order of the manifest
        if row.left_out is None:
            free[row.image_path, row.stem, row.options, row.gold_letter].append(row.id)
    chosen: dict[str, set[str]] = {part: set() for part in PARTS}
    left_out: Counter[str] = Counter()
    for part, paths in files.items():
        for path in paths:
            released = read_medr1_rows(root, str(path.absolute()), images_needed=False)
            left_out[f"released {part} row that cannot be read"] += len(released.dropped)
            for question in released.questions:
                key = (
                    relative_path(root, question.image_path),
                    question.stem,
                    question.options,
                    question.gold_letter,
                )
                if free[key]:
                    chosen[part].add(free[key].pop())
                else:
                    left_out[f"released {part} row that no usable row of the manifest matches"] += 1
    left_out["usable row that was not released"] = sum(map(len, free.values()))
    parts = {part: tuple(row.id for row in rows if row.id in ids) for part, ids in chosen.items()}
    # The unary plus drops reasons with a count of zero.
    return Split(name, "Med-R1's released files, split by row", None, parts, dict(+left_out))
