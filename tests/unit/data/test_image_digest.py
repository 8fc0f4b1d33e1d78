"""The digest of questions' images: of what is in the files, not of their names or of the order of the questions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medr1_ray.data.image_digest import images_digest
from medr1_ray.types import Question


def question(id_: str, image: Path) -> Question:
    return Question(id_, str(image), "What?", ("x", "y"), 0, "CT", "Lesion Grading", "Chest")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 9)
    return tmp_path / "a", tmp_path / "b"


def test_content_alone_counts(files: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = files
    digest = images_digest([question("1", a), question("2", b), question("3", a)], 60)
    assert images_digest([question("3", a), question("1", a), question("2", b)], 60) == digest
    assert images_digest([question("1", b), question("2", a), question("3", b)], 60) != digest
    moved = a.rename(tmp_path / "moved")
    assert images_digest([question("1", moved), question("2", b), question("3", moved)], 60) == digest
    stamp = moved.stat().st_mtime_ns
    moved.write_bytes(b"A" * 9)
    os.utime(moved, ns=(stamp, stamp))
    assert images_digest([question("1", moved), question("2", b), question("3", moved)], 60) != digest


def test_images_that_cannot_be_read_are_counted(files: tuple[Path, Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    asked = [question("1", files[0]), question("2", tmp_path / "none"), question("3", tmp_path / "pipe")]
    assert images_digest([*asked, question("4", tmp_path / "a\0b")], 60).endswith(" (3 could not be read)")
    assert images_digest(asked[:1], 60).isalnum()
