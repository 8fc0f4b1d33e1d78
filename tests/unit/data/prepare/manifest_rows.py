"""Rows of a manifest that needs no files."""

from __future__ import annotations

import dataclasses
import hashlib

from medr1_ray.data.prepare.scans import scan_of
from medr1_ray.data.readers.manifest import ManifestRow


def row(id_: str, image: str = "", **changes: object) -> ManifestRow:
    """Return a usable row about the image `image` (by default of the row's id); each image has its own hashes."""
    image = image or id_
    path = f"Images/Chest/{image}.png"
    whole = ManifestRow(
        id=id_,
        file="Chest.json",
        row=0,
        dataset="Chest",
        modality="CT",
        question_type="Lesion Grading",
        stem="What?",
        options=("x", "y"),
        gold_letter="A",
        gold_text="x",
        image_path=path,
        image_hash=f"hash of {image}",
        perceptual_hash=hashlib.blake2b(image.encode(), digest_size=8).hexdigest(),
        scan=scan_of(path),
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]
