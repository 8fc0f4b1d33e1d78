"""Files of every kind, and what is wrong with some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.data.readers.table.files import Row, open_table, part_named

ROWS = [{"image": "a.png", "n": "001"}, {"image": "b, c.png", "n": "NA"}]


def write_csv(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> None:
    lines = [["image", "n"], *([f'"{row["image"]}"', row["n"]] for row in ROWS)]
    path.write_bytes("\r\n".join(delimiter.join(line) for line in lines).encode(encoding))


def write_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_saved(path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(path)


KINDS: dict[str, Callable[[Path], Any]] = {
    "x.csv": write_csv,
    "semicolons.csv": lambda path: write_csv(path, ";"),
    "excel.CSV": lambda path: write_csv(path, ",", "utf-8-sig"),
    "x.tsv": lambda path: write_csv(path, "\t"),
    "x.json": lambda path: path.write_text(json.dumps(ROWS)),
    "named.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "x.jsonl": lambda path: path.write_text("\n\n".join(map(json.dumps, ROWS)), "utf-8-sig"),
    "x.parquet": write_parquet,
    "saved": write_saved,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    KINDS[name](tmp_path / name)
    (file,) = open_table(tmp_path / name)
    assert (file.name, file.columns, file.embedded, file.part) == (Path(name).stem, ("image", "n"), frozenset(), None)
    assert [row.cells for row in file.read(["image", "n"])] == ROWS
    assert [row.number for row in file.read(["image"])] == [0, 1]


def test_a_folder_and_a_pattern_with_parts(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "Dev", "my_test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        write_csv(tmp_path / "data" / f"{name}.csv")
    for path in (tmp_path, tmp_path / "data", tmp_path / "data" / "*.csv", tmp_path / "**" / "*.csv"):
        parts = {file.name.rpartition("/")[2]: file.part for file in open_table(path)}
        assert parts == {
            "Dev": "validation",
            "my_test": "test",
            "train-00000-of-00002": "train",
            "train-00001-of-00002": "train",
        }
    assert open_table(tmp_path)[0].name == "data/Dev"
    # One part alone is no split: `test.csv` may be all that there is.
    assert open_table(tmp_path / "data" / "my_test.csv")[0].part is None
    write_csv(tmp_path / "data" / "others.csv")
    with pytest.raises(ValueError, match=r"others\.csv: the name has none of the words train, validation and test"):
        open_table(tmp_path)


def test_the_sets_of_a_saved_folder_are_parts(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, Image

    images = Dataset.from_dict({"image": [{"bytes": b"1", "path": None}], "n": ["x"]}).cast_column("image", Image())
    DatasetDict({"train": images, "validation": images}).save_to_disk(tmp_path / "saved")
    files = open_table(tmp_path / "saved")
    assert [(file.name, file.part) for file in files] == [("saved/train", "train"), ("saved/validation", "validation")]
    assert files[0].embedded == {"image"}
    assert list(files[0].read(["image"])) == [Row(0, {"image": {"bytes": b"1", "path": None}})]


def test_rows_with_too_many_or_too_few_cells_are_named(tmp_path: Path) -> None:
    # A comma that is not in quotes would shift all cells after it.
    (tmp_path / "x.csv").write_text("a,b,\n1,2\n1,2,,,\n1,2,3,4\n\n1\n,,\n")
    (file,) = open_table(tmp_path / "x.csv")
    problems = [row.problem for row in file.read(["a"])]
    assert [problem and problem[:12] for problem in problems] == ["row has fewe", None, "row has more", "row has fewe"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.csv", None, r"no\.csv: no such table; a table is a file \(\.csv, \.tsv"),
        ("x.xlsx", b"PK", r"x\.xlsx: not a table; a table is"),
        ("x.csv", b"", r"x\.csv: cannot be read as a table \(ValueError: the first line names no columns\)"),
        ("x.csv", b"a,b,a\n", r"two columns are called 'a'"),
        ("x.csv", "a,é\n".encode("latin-1"), r"x\.csv: not in UTF-8 .*save it as UTF-8"),
        ("x.csv", "a,b\n".encode("utf-16"), r"x\.csv: not in UTF-8"),
        ("x.json", b'{"a": 1}', r"x\.json: cannot be read as a table \(ValueError: holds a dict, not a list of rows\)"),
        ("x.json", b"[1, 2]", r"holds no rows with names"),
        ("x.json", b'[{"a":', r"x\.json: cannot be read as a table"),
        ("x.jsonl", b'{"a": 1}\n{"a"', r"x\.jsonl: cannot be read"),
        ("x.parquet", b"PAR1", r"x\.parquet: cannot be read"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / name)


def test_folders_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such table"):
        open_table(tmp_path)
    write_csv(tmp_path / "x.csv")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "y.json").write_text("[]")
    assert len(open_table(tmp_path)) == 1
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(ValueError, match=r"files of several kinds \(\.csv, \.json\); give a pattern such as"):
        open_table(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"saved: cannot be read as a folder saved by `datasets`"):
        open_table(tmp_path / "saved")


def test_a_file_that_breaks_off_names_the_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join('{"a": 1}\n' for _ in range(200)) + "{")
    (file,) = open_table(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=r"x\.jsonl: cannot be read after row 199 .*line 201, column 2"):
        list(file.read(["a"]))
    (tmp_path / "x.csv").write_bytes(b"a,b\n" + b"1,2\n" * 20000 + b"3,\xe9\n")
    (file,) = open_table(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"x\.csv: not in UTF-8"):
        list(file.read(["a"]))


def test_names_of_parts() -> None:
    assert [part_named(name) for name in ("Train", " val ", "dev", "TEST", "fold1")] == [
        "train",
        "validation",
        "validation",
        "test",
        None,
    ]
