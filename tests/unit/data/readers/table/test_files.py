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


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_columns_that_only_late_rows_have(tmp_path: Path, name: str) -> None:
    rows = [{"a": "1"}] * 300 + [{"a": "2", "patient": "p"}]
    (tmp_path / name).write_text(json.dumps(rows) if name == "x.json" else "\n".join(map(json.dumps, rows)))
    (file,) = open_table(tmp_path / name)
    assert file.columns == ("a", "patient")


def rows_of(path: Path, *lines: str) -> list[tuple[int, str | None]]:
    """Return number and question of the rows of these lines, None of a row that has a problem."""
    text = "\n".join(["image\tquestion\tanswer", *lines])
    path.write_text(text.replace("\t", ",") if path.suffix == ".csv" else text)
    (file,) = open_table(path)
    return [(row.number, None if row.problem else row.cells["question"]) for row in file.read(file.columns)]


def test_tabs_without_quoting(tmp_path: Path) -> None:
    # Quotation marks are letters there, whether something closes them, in another row, or not at all.
    lines = ['a\t"ground glass\tA', "b\tsecond\tB", 'c\t"size" 3"\tA', 'd\t3 "\tB', "", 'e\t"mass" seen?\tA']
    texts = ['"ground glass', "second", '"size" 3"', '3 "', '"mass" seen?']
    assert rows_of(tmp_path / "x.tsv", *lines) == list(enumerate(texts))


def test_tabs_with_quoting(tmp_path: Path) -> None:
    one_line = ['a\t"a ""mass"", seen"\tA', '"b"\t""\tB', 'c\t"""x"""\tB']
    assert rows_of(tmp_path / "x.tsv", *one_line) == list(enumerate(['a "mass", seen', "", '"x"']))
    # Tabs and line breaks in quotes, and what stands before and after.
    lines = [*one_line, 'd\t"two\n\nlines"\tA', 'e\t"a\ttab"\tB', 'f\t"three\nlines\n"\tA']
    texts = ['a "mass", seen', "", '"x"', "two\n\nlines", "a\ttab", "three\nlines\n"]
    assert rows_of(tmp_path / "x.tsv", *lines) == list(enumerate(texts))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_rows_inside_a_cell_in_quotes_are_counted(tmp_path: Path, name: str) -> None:
    # The row with two line breaks in quotes tells that quotes have a meaning in this file.
    good = 'a\t"two\nlines, or\nthree"\tA'
    swallowed = ['b\t"ground glass\tB', "c\tsecond\tA", 'd\tsize 3"\tB']
    assert rows_of(tmp_path / name, good, *swallowed, "e\tlast\tA") == [
        (0, "two\nlines, or\nthree"),
        (1, None),
        (2, None),
        (3, None),
        (4, "last"),
    ]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        # Cells in quotes after the mark, an empty line, and a row that lacks a cell.
        ("x.csv", ['b\t"ground glass\tB', 'd\tsize 3"\t"A, B"']),
        ("x.tsv", ["z\tragged", 'b\t"ground glass\tB', "", 'd\tsize 3"\tA']),
        ("x.tsv", ['b\t"ground glass\tB', "c\tragged", 'd\tsize 3"\tA']),
    ],
)
def test_no_row_inside_a_cell_in_quotes_is_missed(tmp_path: Path, name: str, lines: list[str]) -> None:
    rows = rows_of(tmp_path / name, *lines, "e\tlast\tA")
    filled = [line for line in lines if line]
    assert rows == [*((number, None) for number in range(len(filled))), (len(filled), "last")]


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
        ("x.jsonl", b'{"a": 1}\n' * 200 + b'{"a"', r"x\.jsonl: cannot be read as a table .*line 201, column 5"),
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
    (tmp_path / "x.csv").write_text("a,b\n" + "1,2\n" * 200 + '"3,4\n')
    (file,) = open_table(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"x\.csv: cannot be read after row 199 .*unexpected end of data"):
        list(file.read(["a"]))
    for name, separator in (("x.csv", b","), ("x.tsv", b"\t")):
        lines = [[b"a", b"b"]] * 20000 + [[b"3", b"\xe9"]]
        (tmp_path / name).write_bytes(b"\n".join(map(separator.join, lines)))
        (file,) = open_table(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: not in UTF-8 after row \d\d"):
            list(file.read(["a"]))


def test_names_of_parts() -> None:
    assert [part_named(name) for name in ("Train", " val ", "dev", "TEST", "fold1")] == [
        "train",
        "validation",
        "validation",
        "test",
        None,
    ]
