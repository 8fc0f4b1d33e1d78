"""What a split must not divide: the table's own groups, what file names tell, or single images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from medr1_ray.data.prepare.scans import described, groups_of, proposal, scan_of
from medr1_ray.data.readers.manifest import ManifestRow

_NAMES = 3

Grouping = Literal["column", "paths", "images"]


def regrouped(
    rows: Sequence[ManifestRow], grouping: Grouping, files: Mapping[str, str] | None = None
) -> list[ManifestRow]:
    """Return the rows with `scan` as the grouping has it; `column` keeps the groups that the rows have.

    `files` has the file that an image was made from; the images of one file belong together.
    """
    if grouping == "column":
        return list(rows)
    scan = scan_of if grouping == "paths" else str
    return [
        row if row.image_path is None else replace(row, scan=scan((files or {}).get(row.image_path, row.image_path)))
        for row in rows
    ]


def describe(rows: Sequence[ManifestRow], grouping: Grouping) -> str:
    """Return what the groups of these rows are, and what else they could be, in one line."""
    used = [row for row in rows if row.left_out is None and row.image_path is not None]
    groups = groups_of(used)
    if grouping != "images":
        source = "file names" if grouping == "paths" else "the group column"
        sizes = Counter({str(of[0].scan): len({row.image_path for row in of}) for of in groups.values()})
        return f"groups, from {source}: {described(sizes)}{_joined(groups)}; --groups images splits image by image"
    images = {row.image_path: str(row.scan) for row in used}
    files = set(images.values())
    own = f"groups: each of the {len(files)} images on its own"
    if len(files) < len(images):
        own = f"groups: {len(images)} images of {len(files)} files, those of one file together"
    if len(groups) < len(files):
        own += f", but {len(files) - len(groups)} with the pixels of another, which stay with it"
    found = proposal(list(images.values()))
    if found is None:
        return own
    return (
        f"{own}. By their file names some may belong together: {found}; --groups paths keeps these whole, a column "
        "that names the patient is better"
    )


def _joined(groups: Mapping[str, Sequence[ManifestRow]]) -> str:
    """Return which groups count as one, because they share an image or its pixels; empty where none do."""
    found = [names for of in groups.values() if len(names := sorted({str(row.scan) for row in of})) > 1]
    if not found:
        return ""
    first = ", ".join(found[0][:_NAMES]) + (", ..." if len(found[0]) > _NAMES else "")
    into = "one" if len(found) == 1 else f"{len(found)}, the first"
    return f" (shared images join {sum(map(len, found))} named groups into {into}: {first})"
