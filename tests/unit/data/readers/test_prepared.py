"""Reading a split of a prepared dataset, and refusing one that no longer matches its images or its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.data.prepare.writing import write_manifest, write_prepared, write_split
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.prepared import PreparedSplit, Split, read_split, split_digest
from medr1_ray.data.readers.rows import Dropped
from tests.unit.data.prepare.manifest_rows import row

ROWS = [
    row("a"),
    row("bad", row=3, left_out="image file is empty", image_hash=None),
    row("b", stem="Which?"),
    row("c"),
    ManifestRow("notes.txt", "notes.txt", None, left_out="file is no annotation file (.json)"),
]
SPLIT = Split("own", "by hand", None, {"train": ("c", "a"), "validation": (), "test": ("b",)}, {})


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    folder = tmp_path / "prepared"
    folder.mkdir()
    write_prepared(folder, tmp_path / "images", ROWS)
    write_split(folder, SPLIT, ROWS, {})
    return folder


def test_a_split_has_the_questions_of_its_parts_and_what_was_left_out(prepared: Path) -> None:
    images = prepared.parent / "images"
    split = read_split(prepared, "own")
    assert split == PreparedSplit(
        parts={
            "train": (ROWS[3].question(images), ROWS[0].question(images)),
            "validation": (),
            "test": (ROWS[2].question(images),),
        },
        digest=split_digest(SPLIT, ROWS),
        dropped=(
            Dropped("Chest.json", 3, "image file is empty"),
            Dropped("notes.txt", 0, "file is no annotation file (.json)"),
        ),
    )


def changed(prepared: Path, file: str, change: Callable[[Any], object]) -> Path:
    content = json.loads((prepared / file).read_text())
    change(content)
    (prepared / file).write_text(json.dumps(content))
    return prepared


def swap(content: Any) -> None:
    parts = content["parts"]
    parts["train"], parts["test"] = parts["test"], parts["train"]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("prepared.json", lambda c: c.update(version=0), r"has version 0, this code reads 1; run `python -m .* again"),
        ("prepared.json", lambda c: c.update(root="/gone"), r"its images were in /gone, which is not a folder"),
        ("splits/own.json", swap, "does not match the manifest"),
        ("splits/own.json", lambda c: c["parts"]["test"].append("x"), "does not match the manifest"),
        ("splits/own.json", lambda c: c["parts"]["train"].reverse(), "does not match the manifest"),
        ("splits/own.json", lambda c: c.update(digest="0" * 32), "does not match the manifest"),
    ],
)
def test_a_changed_file_is_refused(prepared: Path, file: str, change: Callable[[Any], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_split(changed(prepared, file, change), "own")


@pytest.mark.parametrize(
    "changes", [{"image_hash": "other pixels"}, {"stem": "Why?"}, {"options": ("x", "z")}, {"gold_letter": "B"}]
)
def test_a_changed_manifest_is_refused(prepared: Path, changes: dict[str, Any]) -> None:
    write_manifest(prepared, [*ROWS[:3], row("c", **changes), ROWS[4]])
    with pytest.raises(ValueError, match="does not match the manifest"):
        read_split(prepared, "own")


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../secret.png", "Images/../../secret.png", "Images/linked/secret.png", "Images/s.png", "a\0"],
)
def test_an_image_outside_of_the_images_folder_is_refused_by_name(prepared: Path, path: str) -> None:
    """Its path is not in the split's digest, so that nothing else would notice."""
    (prepared.parent / "secret.png").write_text("secret")
    (prepared.parent / "images" / "Images").mkdir()
    (prepared.parent / "images" / "Images" / "linked").symlink_to(prepared.parent)
    (prepared.parent / "images" / "Images" / "s.png").symlink_to(prepared.parent / "secret.png")
    write_manifest(prepared, [*ROWS[:3], row("c", image_path=path), ROWS[4]])
    with pytest.raises(ValueError, match=r"manifest\.parquet: row 'c' names the image .*; run `.*` again") as got:
        read_split(prepared, "own")
    assert repr(path) in str(got.value)


def test_a_link_is_found_in_a_folder_whose_other_images_are_files(prepared: Path) -> None:
    (prepared.parent / "secret.png").write_text("secret")
    images = prepared.parent / "images" / "Images"
    images.mkdir()
    (images / "file.png").write_text("an image")
    (images / "within.png").symlink_to(images / "file.png")
    (images / "link.png").symlink_to(prepared.parent / "secret.png")

    def named(c: str, a: str, b: str) -> None:  # in the order of the split
        of_a, of_c = row("a", image_path=f"Images/{a}.png"), row("c", image_path=f"Images/{c}.png")
        of_b = row("b", stem="Which?", image_path=f"Images/{b}.png")
        write_manifest(prepared, [of_a, ROWS[1], of_b, of_c, ROWS[4]])

    named("file", "within", "file")
    read_split(prepared, "own")
    # A way out and back in: what lies beside it is outside.
    (images / "linked").symlink_to(prepared.parent)
    (prepared.parent / "back.png").symlink_to(images / "file.png")
    named("linked/back", "linked/secret", "file")
    with pytest.raises(ValueError, match=r"names the image 'Images/linked/secret.png': .*a link that leads out"):
        read_split(prepared, "own")
    for order in (("file", "within", "link"), ("within", "link", "file"), ("link", "file", "within")):
        named(*order)
        with pytest.raises(ValueError, match=r"names the image 'Images/link.png': .*a link that leads out"):
            read_split(prepared, "own")


def test_what_is_not_there_is_named(prepared: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.split=other: no such split; .* has own$"):
        read_split(prepared, "other")
    (prepared / "splits" / "own.json").unlink()
    with pytest.raises(ValueError, match="has no splits"):
        read_split(prepared, "own")
    (prepared / "prepared.json").write_text("{")
    with pytest.raises(ValueError, match=r"prepared\.json: is not JSON .*give a folder that"):
        read_split(prepared, "own")
