"""A prepared dataset on disk: the manifest, its splits with their leakage, and a summary of what was left out.

Its files are `prepared.json` (folder of the images, counts, digest), `manifest.parquet`, `splits/<name>.json`, and
`images.jsonl`, the facts about image files that `prepare` reuses when it is run again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medr1_ray.base.json_files import read_mapping
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.manifest import MANIFEST_FILE, ManifestRow, read_manifest
from medr1_ray.data.readers.rows import Dropped, image_path, refuse_link_out
from medr1_ray.types import Question

VERSION = 1

_OF_A_SPLIT = ("recipe", "seed", "digest", "left_out", "parts")
_COMMAND = "python -m medr1_ray.data.prepare"


@dataclass(frozen=True)
class PreparedSplit:
    """Questions of a split by part (`train`, `validation`, `test`), and the rows that the manifest left out."""

    parts: dict[str, tuple[Question, ...]]
    digest: str
    dropped: tuple[Dropped, ...]


def read_split(folder: Path, name: str) -> PreparedSplit:
    """Read a split of a prepared dataset.

    Raises:
        ValueError: if the folder is not a prepared dataset, its images are no longer there, it has no such split, the
            split does not match the manifest, or an image path leads out of the images' folder.
    """
    account = _read_json(folder / "prepared.json", f"give a folder that `{_COMMAND}` wrote", ("version", "root"))
    if account.get("version") != VERSION:
        raise ValueError(
            f"data.root={folder}: prepared.json has version {account.get('version')}, this code reads {VERSION}; run "
            f"`{_COMMAND}` again"
        )
    # Relative where `prepare` wrote the images itself, so that the folder can be moved.
    root = folder / account["root"]
    if not root.is_dir():
        raise ValueError(
            f"data.root={folder}: its images were in {root}, which is not a folder on this machine; run `{_COMMAND} "
            f"... --out {folder}` with the folder that holds them now"
        )
    names = sorted(path.stem for path in (folder / "splits").glob("*.json"))
    if name not in names:
        raise ValueError(f"data.split={name}: no such split; {folder} has {', '.join(names) or 'no splits'}")
    content = _read_json(folder / "splits" / f"{name}.json", f"run `{_COMMAND}` again", _OF_A_SPLIT)
    rows = read_manifest(folder)
    by_id = {row.id: row for row in rows if row.left_out is None}
    ids: dict[str, tuple[str, ...]] = {part: tuple(content["parts"][part]) for part in PARTS}
    split = Split(name, content["recipe"], content["seed"], ids, content["left_out"])
    # The ids first, because `split_digest` looks each of them up.
    if not by_id.keys() >= {id_ for part in ids.values() for id_ in part} or (
        split_digest(split, rows) != content["digest"]
    ):
        raise ValueError(
            f"data.split={name}: the split does not match the manifest in {folder}, one of the two was changed; run "
            f"`{_COMMAND}` again"
        )
    _refuse_images_outside(folder, root, [by_id[id_] for chosen in ids.values() for id_ in chosen])
    return PreparedSplit(
        parts={part: tuple(by_id[id_].question(root) for id_ in chosen) for part, chosen in ids.items()},
        digest=content["digest"],
        dropped=tuple(Dropped(row.file, row.row or 0, row.left_out) for row in rows if row.left_out),
    )


def _refuse_images_outside(folder: Path, root: Path, rows: Sequence[ManifestRow]) -> None:
    """Raise ValueError for an image path that `prepare` would not have written: the digest does not cover paths."""
    absolute, inside = os.path.abspath(root), set[str]()
    for path, row in {str(row.image_path): row for row in rows}.items():
        try:
            image_path(root, path, images_needed=False)
            full = os.path.join(absolute, path)
            # Links are followed once for a folder: a file of it that is none is where the others are.
            if os.path.dirname(full) not in inside or os.path.islink(full):
                refuse_link_out(root, full)
                if not os.path.islink(full):
                    inside.add(os.path.dirname(full))
        # Of a path that cannot be one, with a NUL in it.
        except (RowError, ValueError) as reason:
            raise ValueError(
                f"{folder / MANIFEST_FILE}: row {row.id!r} names the image {path!r}: {reason} ({root}); run "
                f"`{_COMMAND}` again"
            ) from None


def _read_json(path: Path, advice: str, needed: Sequence[str]) -> dict[str, Any]:
    try:
        return read_mapping(path, advice, needed)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); {advice}") from error


PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Row ids by part, in the order of the manifest.

    `seed` is None for splits that were not drawn at random; `left_out` counts rows that are in no part, by reason.
    """

    name: str
    recipe: str
    seed: int | None
    parts: dict[str, tuple[str, ...]]
    left_out: dict[str, int]


def split_digest(split: Split, rows: Sequence[ManifestRow]) -> str:
    """Return a digest of 32 hexadecimal digits over each part's questions and the pixels of their images."""
    by_id = {row.id: row for row in rows if row.left_out is None}
    content = hashlib.blake2b(digest_size=16)
    for part in PARTS:
        for id_ in split.parts[part]:
            row = by_id[id_]
            content.update(repr((part, id_, row.image_hash, row.stem, row.options, row.gold_letter)).encode())
    return content.hexdigest()
