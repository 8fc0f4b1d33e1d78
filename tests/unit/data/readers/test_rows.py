"""Annotation files, texts and image paths that cannot be used are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.rows import (
    Dropped,
    dropped_by_reason,
    image_path,
    load_rows,
    refuse_missing_image,
    text_of,
)
from tests.unit.data.prepare.bad_data import FILES


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_annotation_file_is_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    make, remark = FILES[kind]
    make(tmp_path / kind)
    with pytest.raises(ValueError, match=rf"{kind}: .*{remark}"):
        load_rows(tmp_path / kind)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "marked.json").write_text('["Größe"]', "utf-8-sig")
    assert load_rows(tmp_path / "marked.json") == ["Größe"]


def test_reasons_are_counted_and_the_most_frequent_comes_first() -> None:
    dropped = tuple(Dropped("f.json", row, reason) for row, reason in enumerate(["few", "many", "many"]))
    assert list(dropped_by_reason(dropped).items()) == [("many", 2), ("few", 1)]


def test_a_text_is_stripped_and_may_have_any_letters() -> None:
    assert text_of({"question": " Wie groß?\n"}, "question") == "Wie groß?"
    # Tabs and line breaks are not printable, but texts have them; an emoji is one character, not half a pair.
    assert text_of({"question": "a\tb\nc 😀"}, "question") == "a\tb\nc 😀"


def test_half_a_surrogate_pair_is_no_text() -> None:
    for code in (0xD7FF, 0xE000):  # beside the surrogates
        assert text_of({"question": chr(code)}, "question") == chr(code)
    for code in (0xD800, 0xDFFF):
        with pytest.raises(RowError, match="question holds characters that no text has"):
            text_of({"question": chr(code)}, "question")


def test_an_image_path_is_absolute_and_stays_in_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert image_path(Path("data"), "Images/../Images/a.png", False) == str(tmp_path / "data/Images/a.png")
    for path in ("../database/a.png", ".", "Images/.."):  # the folder itself is no image either
        with pytest.raises(RowError, match="leads out of the dataset's folder"):
            image_path(Path("data"), path, False)
    # Who names the root of everything may give any absolute path.
    assert image_path(Path("/"), str(tmp_path / "a.png"), False) == str(tmp_path / "a.png")


def test_the_folder_of_the_images_may_be_a_link_to_another_disk_but_no_image_may(tmp_path: Path) -> None:
    disk, root = tmp_path / "disk", tmp_path / "data"
    (disk / "Chest").mkdir(parents=True)
    root.mkdir()
    (root / "Images").symlink_to(disk)
    (disk / "Chest" / "a.png").touch()
    refuse_missing_image(root, str(root / "Images/Chest/a.png"))
    (root / "top.png").touch()
    refuse_missing_image(root, str(root / "top.png"))
    (disk / "Chest" / "b.png").symlink_to(root / "top.png")
    with pytest.raises(RowError, match="link that leads out"):
        refuse_missing_image(root, str(root / "Images/Chest/b.png"))
    (root / "linked.png").symlink_to(disk / "Chest" / "a.png")
    with pytest.raises(RowError, match="link that leads out"):
        refuse_missing_image(root, str(root / "linked.png"))
    (root / "Own" / "Knee").mkdir(parents=True)
    (root / "Own" / "Linked").symlink_to(disk / "Chest")
    with pytest.raises(RowError, match="link that leads out"):
        refuse_missing_image(root, str(root / "Own/Linked/a.png"))
