"""A made data set: image files of 384 x 384 pixels, each with bytes of its own, and questions about them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from medr1_ray.data.questions import MODALITIES, QUESTION_TYPES

PIXELS, PICTURES = 384, 64


def make(folder: Path, images: int, rows: int) -> None:
    """Write a data set in OmniMedVQA's layout."""
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        # Coarse noise, which compresses to some 15 kB, as photographs of this size do.
        coarse = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    for number in range(images):
        path = folder / "Images" / f"source{number % 40}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readers of JPEG stop at its end: another file with the same pixels.
        path.write_bytes(pictures[number % PICTURES] + str(number).encode())
    information = folder / "QA_information" / "Open-access"
    information.mkdir(parents=True)
    by_source: dict[int, list[dict[str, str]]] = {}
    for row in range(rows):
        by_source.setdefault(row % images % 40, []).append(_row(row, row % images))
    for source, found in by_source.items():
        (information / f"source{source}.json").write_text(json.dumps(found))


def _row(row: int, image: int) -> dict[str, str]:
    options = {f"option_{letter}": f"finding {letter} of {row % 997}" for letter in "ABCD"}
    return {
        "dataset": f"source{image % 40}",
        "question_id": str(row),
        "question_type": QUESTION_TYPES[row // 7 % len(QUESTION_TYPES)],
        "question": f"Which finding does this image show most clearly, in the view numbered {row % 211}?",
        "gt_answer": options["option_" + "ABCD"[row % 4]],
        "image_path": f"Images/source{image % 40}/{image}.jpg",
        "modality_type": MODALITIES[image % len(MODALITIES)],
        **options,
    }
