"""What a split must not divide: the table's own groups, what file names tell, or single images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from medr1_ray.data.prepare.scans import described, proposal, scan_of
from medr1_ray.data.readers.manifest import ManifestRow

Grouping = Literal["column", "paths", "images"]


def regrouped(rows: Sequence[ManifestRow], grouping: Grouping) -> list[ManifestRow]:
    """Return the rows with `scan` as the grouping has it; `column` keeps the groups that the rows have."""
    if grouping == "column":
        return list(rows)
    scan = scan_of if grouping == "paths" else str
    return [row if row.image_path is None else replace(row, scan=scan(row.image_path)) for row in rows]


def describe(rows: Sequence[ManifestRow], grouping: Grouping) -> str:
    """Return what the groups of these rows are, and what else they could be, in one line."""
    images = {row.image_path: str(row.scan) for row in rows if row.left_out is None and row.image_path is not None}
    if grouping != "images":
        source = "file names" if grouping == "paths" else "the group column"
        return f"groups, from {source}: {described(Counter(images.values()))}; --groups images splits image by image"
    alone, found = f"groups: each of the {len(images)} images on its own", proposal(images)
    if found is None:
        return alone
    return (
        f"{alone}. By their file names some may belong together: {found}; --groups paths keeps these whole, a column "
        "that names the patient is better"
    )
