"""Bad rows, images and annotation files of every kind, with the reason for which each is left out."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD: dict[str, Any] = {
    "dataset": "Chest",
    "question_id": "Chest_1",
    "question_type": "Modality Recognition",
    "question": "What is this?",
    "gt_answer": "CT",
    "image_path": "Images/Chest/good.png",
    "option_A": "X-Ray",
    "option_B": "CT",
    "modality_type": "CT(Computed Tomography)",
}
# The row itself or its changes to `GOOD`, and the reason for which it is left out.
ROWS: dict[str, tuple[Any, str]] = {
    "a list": (["What?", "CT"], "row is not an object"),
    "a text": ("What?", "row is not an object"),
    "null": (None, "row is not an object"),
    "nested rows": ([[GOOD]], "row is not an object"),
    "an empty object": ({}, "fewer than two options"),
    "no question": ({"question": None}, "no question"),
    "a blank question": ({"question": " \n"}, "no question"),
    "a question that is NaN": ({"question": float("nan")}, "question is no text"),
    "a nested question": ({"question": {"text": "What?"}}, "question is no text"),
    "half a surrogate pair": ({"question": "What \ud83d?"}, "question holds characters that no text has"),
    "a zero in the text": ({"question": "What\0?"}, "question holds characters that no text has"),
    "no gold": ({"gt_answer": ""}, "no gt_answer"),
    "gold that is a number": ({"gt_answer": 1}, "gt_answer is no text"),
    "gold not among the options": ({"gt_answer": "PET"}, "gold answer not among the options"),
    "gold that is a letter": ({"gt_answer": "B"}, "gold answer not among the options"),
    "gold offered twice": ({"option_C": "CT"}, "gold option occurs twice"),
    "one option": ({"option_A": None}, "fewer than two options"),
    "only option A": ({"option_B": None}, "fewer than two options"),
    "a missing option": ({"option_C": None, "option_D": "MRI"}, "a letter is missing among the options"),
    "an option that is NaN": ({"option_A": float("nan")}, "option_A is no text"),
    "an option that is a list": ({"option_A": ["X-Ray"]}, "option_A is no text"),
    "a blank option": ({"option_A": "  "}, "no option_A"),
    "no image path": ({"image_path": None}, "no image_path"),
    "an image path that is a number": ({"image_path": 7}, "image_path is no text"),
    "an absolute path": ({"image_path": "/etc/hostname"}, "image path leads out of the dataset's folder"),
    "a path upward": ({"image_path": "Images/../../x.png"}, "image path leads out of the dataset's folder"),
    "a zero in the path": ({"image_path": "Images/\0.png"}, "image_path holds characters that no text has"),
    "no dataset": ({"dataset": None}, "no dataset"),
    "no modality": ({"modality_type": None}, "no modality_type"),
    "no question type": ({"question_type": []}, "question_type is no text"),
}


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
NOISE_PNG = png(NOISE)


def jpeg() -> bytes:
    stream = io.BytesIO()
    NOISE.save(stream, "JPEG")
    return stream.getvalue()


def frames() -> bytes:
    stream = io.BytesIO()
    NOISE.save(stream, "GIF", save_all=True, append_images=[Image.new("RGB", NOISE.size)])
    return stream.getvalue()


def wrong_checksum() -> bytes:
    place = NOISE_PNG.index(b"IDAT") + 40
    return NOISE_PNG[:place] + bytes([NOISE_PNG[place] ^ 255]) + NOISE_PNG[place + 1 :]


def claims(width: int, height: int) -> bytes:
    """Return a PNG whose header has another size than its pixels: a reader that decodes it finds it damaged."""
    header = b"IHDR" + struct.pack(">II", width, height) + NOISE_PNG[24:29]
    return NOISE_PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + NOISE_PNG[33:]


def text_bomb() -> bytes:
    """Return a PNG with 100 MiB of text, compressed to 100 KiB."""
    packed = b"a\0\0" + zlib.compress(bytes(100 * 2**20), 1)
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    return NOISE_PNG[:33] + chunk + NOISE_PNG[33:]


def nan_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def outside(path: Path) -> Path:
    other = path.parents[3] / "elsewhere.png"
    other.write_bytes(NOISE_PNG)
    return other


# How the image file is made, why its question is left out (None if it is used), and a part of the remark.
IMAGES: dict[str, tuple[Callable[[Path], object], str | None, str | None]] = {
    "missing.png": (lambda path: None, "image file not found", None),
    "MISSPELT.PNG": (lambda path: path.with_name("misspelt.png").write_bytes(NOISE_PNG), "image file not found", None),
    "folder.png": (lambda path: path.mkdir(), "image path is no regular file", None),
    "pipe.png": (os.mkfifo, "image path is no regular file", None),
    "dangling.png": (lambda path: path.symlink_to("nowhere.png"), "image path is no regular file", None),
    "loop.png": (lambda path: path.symlink_to("loop.png"), "image path is no regular file", None),
    "outside.png": (
        lambda path: path.symlink_to(outside(path)),
        "image is a link that leads out of the dataset's folder",
        None,
    ),
    "empty.png": (lambda path: path.touch(), "image file is empty", None),
    "large.tif": (lambda path: sparse(path, 300 * 2**20), "image file larger than 256 MiB", None),
    "zeros.png": (lambda path: sparse(path, 1000), "image cannot be decoded", "cannot identify image file"),
    "truncated.png": (lambda path: path.write_bytes(NOISE_PNG[:2000]), "image cannot be decoded", "truncated"),
    "truncated.jpg": (lambda path: path.write_bytes(jpeg()[:900]), "image cannot be decoded", "truncated"),
    "header.png": (lambda path: path.write_bytes(NOISE_PNG[:20]), "image cannot be decoded", ""),
    "checksum.png": (lambda path: path.write_bytes(wrong_checksum()), "image cannot be decoded", ""),
    "bomb.png": (lambda path: path.write_bytes(text_bomb()), "image cannot be decoded", "too large"),
    "text.png": (lambda path: path.write_text("<html>404"), "image cannot be decoded", "cannot identify"),
    "postscript.png": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "image cannot be decoded",
        "cannot identify",
    ),
    "dicom.dcm": (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(99)), "image cannot be decoded", "cannot"),
    "20000x20000.png": (
        lambda path: path.write_bytes(claims(20000, 20000)),
        "image takes more than 192 MiB when it is decoded",
        None,
    ),
    "8193x8192.png": (
        lambda path: path.write_bytes(claims(8193, 8192)),
        "image takes more than 192 MiB when it is decoded",
        None,
    ),
    "jpeg.png": (lambda path: path.write_bytes(jpeg()), None, "a JPEG file by its content"),
    "unknown.xyz": (lambda path: path.write_bytes(NOISE_PNG), None, "a PNG file by its content"),
    "frames.gif": (lambda path: path.write_bytes(frames()), None, "several frames, the first is used"),
    "black.png": (lambda path: Image.new("L", (9, 9)).save(path), None, "one colour only"),
    "nan.tif": (lambda path: path.write_bytes(nan_tiff()), None, "one colour only"),
    "link.png": (lambda path: path.symlink_to("jpeg.png"), None, "a JPEG file by its content"),
}
# How the annotation file is made, and a part of the manifest's remark about it.
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero bytes.json": (lambda path: path.touch(), "Expecting value"),
    "truncated.json": (lambda path: path.write_text(json.dumps([GOOD])[:-9]), "cannot be read as JSON"),
    "binary.json": (lambda path: path.write_bytes(NOISE_PNG), "can't decode byte"),
    "utf-16.json": (lambda path: path.write_text(json.dumps([GOOD]), "utf-16"), "can't decode byte"),
    "latin-1.json": (lambda path: path.write_bytes('["Größe"]'.encode("latin-1")), "can't decode byte"),
    "an object.json": (lambda path: path.write_text(json.dumps({"rows": [GOOD]})), "holds a dict"),
    "a number.json": (lambda path: path.write_text("12"), "holds a int"),
    "nested deeply.json": (lambda path: path.write_text("[" * 200_000), "recursion"),
    "lines.json": (lambda path: path.write_text(2 * (json.dumps(GOOD) + "\n")), "Extra data"),
    "endless number.json": (lambda path: path.write_text(f"[{'9' * 5000}]"), "Exceeds the limit"),
    "very large.json": (lambda path: sparse(path, 300 * 2**20), "larger than 256 MiB"),
    "folder.json": (lambda path: path.mkdir(), "Is a directory"),
    "dangling.json": (lambda path: path.symlink_to("nowhere.json"), "No such file"),
}


def bad_rows() -> list[Any]:
    """Return the rows of `ROWS`, in its order."""
    return [GOOD | change if isinstance(change, dict) and change else change for change, _ in ROWS.values()]


def make_image(folder: Path, name: str) -> None:
    """Make the file of `IMAGES` with this name in `folder`, an `Images/Chest` of a dataset, and what it links to."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in (["jpeg.png"] if name == "link.png" else []) + [name]:
        if not (folder / each).exists():
            IMAGES[each][0](folder / each)
