"""What a prepared dataset says about itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medr1_ray.data.prepare.leakage import Leakage
from medr1_ray.data.prepare.writing import enter_folder, require_own_folder, write_prepared, write_split
from medr1_ray.data.readers.manifest import digest_of
from medr1_ray.data.readers.prepared import Split, split_digest
from tests.unit.data.prepare.manifest_rows import row

ROWS = [
    row("empty", left_out="image file is empty", remark="not counted: the row is not used"),
    *(row(f"gone:{i}", left_out="image file not found") for i in range(7)),
    row("a", "picture", remark="one colour only"),
    row("b", "picture"),
    row("c"),
]


def test_the_account_counts_rows_images_and_reasons_with_the_first_five(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    account = write_prepared(tmp_path, Path("data"), ROWS)
    assert account == {
        "version": 1,
        "root": str(tmp_path / "data"),
        "digest": digest_of(ROWS),
        "rows": 11,
        "questions": 3,
        "images": 2,
        "left_out": {
            "image file not found": {"rows": 7, "first": [f"gone:{i}" for i in range(5)]},
            "image file is empty": {"rows": 1, "first": ["empty"]},
        },
        "remarks": {"one colour only": {"rows": 1, "first": ["a"]}},
    }
    assert list(account["left_out"]) == ["image file not found", "image file is empty"], "the most frequent first"
    assert json.loads((tmp_path / "prepared.json").read_text()) == account


def test_splits_of_an_earlier_manifest_are_removed(tmp_path: Path) -> None:
    write_prepared(tmp_path, tmp_path, ROWS)
    split = Split("own", "by hand", 3, {"train": ("a", "b"), "validation": (), "test": ("c",)}, {"too old": 2})
    leak = Leakage(1, 0.5, None, 0.25, 0.0, 1.0, 0.5)
    digest = write_split(tmp_path, split, ROWS, {"validation": None, "test": leak})
    assert json.loads((tmp_path / "splits" / "own.json").read_text()) == {
        "name": "own",
        "recipe": "by hand",
        "seed": 3,
        "digest": digest,
        "questions": {"train": 2, "validation": 0, "test": 1},
        "left_out": {"too old": 2},
        "leakage": {
            "validation": None,
            "test": {
                "questions": 1,
                "shared_image": 0.5,
                "near_duplicate": None,
                "shared_scan": 0.25,
                "repeated_prompt": 0.0,
                "blind_prior": 1.0,
                "chance": 0.5,
            },
        },
        "parts": {"train": ["a", "b"], "validation": [], "test": ["c"]},
    }
    assert digest == split_digest(split, ROWS)
    write_prepared(tmp_path, tmp_path, ROWS)
    assert list((tmp_path / "splits").iterdir()) == []


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    for new in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        require_own_folder(tmp_path / new)
    (tmp_path / "mine" / "splits").mkdir(parents=True)
    (tmp_path / "mine" / "splits" / "own.json").touch()
    with pytest.raises(ValueError, match=r"--out .*mine holds files that this command did not write, e\.g\. splits"):
        require_own_folder(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"own\.json is a file"):
        require_own_folder(tmp_path / "mine" / "splits" / "own.json")


def test_what_was_prepared_before_from_something_else_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for source in ("a.csv", "a.csv", "b.csv"):
        enter_folder(out, source)
        require_own_folder(out)
    assert capsys.readouterr().out == f"NOTE: {out} has what was prepared from a.csv; it is replaced\n"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out .* cannot be written"):
        enter_folder(tmp_path / "file" / "below", "a.csv")
