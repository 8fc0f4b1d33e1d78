"""Bad data of every kind, prepared at once: each is named, none ends the run, none is lost."""

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
import pytest
from PIL import Image

from medr1_ray.data.prepare.__main__ import main
from medr1_ray.data.readers.manifest import ManifestRow, read_manifest

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

# What a row has instead, and why it is left out.
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


def text_bomb() -> bytes:
    """A PNG with 100 MiB of text, packed into 100 KiB."""
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


# How the image's file is made, why its question is left out (None: it is used), and what is remarked.
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
        lambda path: Image.new("1", (20000, 20000)).save(path),
        "image has more than 89478485 pixels",
        None,
    ),
    "12000x8000.png": (
        lambda path: Image.new("1", (12000, 8000)).save(path),
        "image has more than 89478485 pixels",
        None,
    ),
    "jpeg.png": (lambda path: path.write_bytes(jpeg()), None, "a JPEG file by its content"),
    "unknown.xyz": (lambda path: path.write_bytes(NOISE_PNG), None, "a PNG file by its content"),
    "frames.gif": (lambda path: path.write_bytes(frames()), None, "several frames, the first is used"),
    "black.png": (lambda path: Image.new("L", (9, 9)).save(path), None, "one colour only"),
    "nan.tif": (lambda path: path.write_bytes(nan_tiff()), None, "one colour only"),
    "link.png": (lambda path: path.symlink_to("jpeg.png"), None, "a JPEG file by its content"),
}

# How the annotation file is made, and what the manifest says of it.
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


def write_rows(root: Path, folder: str, name: str, rows: list[Any]) -> None:
    (root / "QA_information" / folder).mkdir(parents=True, exist_ok=True)
    (root / "QA_information" / folder / name).write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The dataset with all of it, and what was prepared of it."""
    root = tmp_path_factory.mktemp("bad") / "data"
    images = root / "Images" / "Chest"
    images.mkdir(parents=True)
    (images / "good.png").write_bytes(NOISE_PNG)
    for name, (make, _, _) in IMAGES.items():
        make(images / name)
    rows = [GOOD | change if isinstance(change, dict) and change else change for change, _ in ROWS.values()]
    write_rows(root, "Open-access", "Rows.json", [GOOD, *rows])
    of_images = [GOOD | {"image_path": f"Images/Chest/{name}"} for name in IMAGES]
    write_rows(root, "Open-access", "Pictures.json", of_images)
    write_rows(root, "Restricted-access", "Rows.json", [GOOD, GOOD | {"image_path": "Images/Chest/missing.png"}])
    (root / "QA_information" / "Open-access" / "marked.json").write_text(json.dumps([GOOD]), "utf-8-sig")
    (root / "QA_information" / "notes.txt").write_text("hello")
    for name, (make, _) in FILES.items():
        make(root / "QA_information" / "Open-access" / name)
    assert main(["--root", str(root), "--out", str(root.parent / "out"), "--workers", "2"]) == 0
    return root, root.parent / "out"


@pytest.fixture(scope="module")
def manifest(prepared: tuple[Path, Path]) -> dict[str, ManifestRow]:
    rows = read_manifest(prepared[1])
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: row for row in rows}


def test_there_are_enough_kinds() -> None:
    assert len(ROWS) + len(IMAGES) + len(FILES) >= 69


@pytest.mark.parametrize("kind", ROWS)
def test_bad_rows_are_named(manifest: dict[str, ManifestRow], kind: str) -> None:
    row = manifest[f"Rows:{1 + list(ROWS).index(kind)}"]
    assert row.left_out == ROWS[kind][1]


@pytest.mark.parametrize("kind", IMAGES)
def test_bad_images_are_named(manifest: dict[str, ManifestRow], kind: str) -> None:
    row = manifest[f"Pictures:{list(IMAGES).index(kind)}"]
    _, reason, remark = IMAGES[kind]
    assert row.left_out == reason
    assert (row.image_hash is None) == (reason is not None)
    assert (row.remark is None) == (remark is None)
    assert (remark or "") in (row.remark or "")


@pytest.mark.parametrize("kind", FILES)
def test_bad_files_are_named(manifest: dict[str, ManifestRow], kind: str) -> None:
    row = manifest[kind.removesuffix(".json")]
    assert (row.file, row.left_out) == (f"QA_information/Open-access/{kind}", "file cannot be read")
    assert FILES[kind][1] in str(row.remark)


def test_nothing_is_lost_and_the_good_is_used(
    prepared: tuple[Path, Path], manifest: dict[str, ManifestRow]
) -> None:
    files_without_rows = len(FILES) + 1  # the text file
    assert len(manifest) == 1 + len(ROWS) + len(IMAGES) + 2 + 1 + files_without_rows
    usable = {id_ for id_, row in manifest.items() if row.left_out is None}
    odd = {f"Pictures:{i}" for i, (_, reason, _) in enumerate(IMAGES.values()) if reason is None}
    # A byte-order mark does no harm, nor does the same file name in another folder.
    assert usable == odd | {"Rows:0", "marked:0", "QA_information/Restricted-access/Rows:0"}
    account = json.loads((prepared[1] / "prepared.json").read_text())
    assert account["rows"] == len(manifest)
    assert sum(reason["rows"] for reason in account["left_out"].values()) == len(manifest) - len(usable)
    assert account["left_out"]["file cannot be read"]["rows"] == len(FILES)
    assert account["left_out"]["image file not found"]["rows"] == 3
    assert account["remarks"]["a JPEG file by its content"]["first"] == [
        f"Pictures:{list(IMAGES).index(name)}" for name in ("jpeg.png", "link.png")
    ]
