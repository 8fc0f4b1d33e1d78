"""Opening the files of a table: their columns, and their rows as dictionaries of plain values.

Texts are taken as they are written. The loaders of `datasets` for CSV and JSON would guess types (`NA` becomes null,
`001` becomes 1) and shift a row that has a comma too many; for Parquet they would first copy the file into a cache.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_ALLOWED = f"a table is a file ({', '.join(SUFFIXES)}), a folder or pattern of them, or a folder saved by `datasets`"

PARTS = ("train", "validation", "test")
_PART_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "validate": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_BATCH = 64  # rows of Parquet at once: each may hold an image

csv.field_size_limit(2**24)


@dataclass(frozen=True)
class Row:
    """Row `number` of a file, counted from 0: its cells by column, or the problem that keeps them from being read."""

    number: int
    cells: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Args:
        name: its path below the table's folder, without suffix.
        part: the part that the file's name names, where the files of a table name several.
        columns: names of the columns, in order.
        embedded: the columns that hold images or bytes.
        read: yields the rows with these columns.
    """

    name: str
    part: str | None
    columns: tuple[str, ...]
    embedded: frozenset[str]
    read: Callable[[Sequence[str]], Iterator[Row]]


def part_named(text: str) -> str | None:
    """Return the part (`PARTS`) that a text names, or None."""
    return _PART_NAMES.get(text.strip().lower())


def open_table(*paths: Path) -> tuple[TableFile, ...]:
    """Open the files of the table at `paths`: files, folders, patterns, or one folder saved by `datasets`.

    Raises:
        ValueError: if there is none, or a file cannot be read.
    """
    if len(paths) == 1 and any((paths[0] / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _saved_by_datasets(paths[0])
    found = [_files_at(path) for path in paths]
    files = list(dict.fromkeys(file for _, of_path in found for file in of_path))
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise ValueError(
            f"{paths[0]}: holds files of several kinds ({', '.join(suffixes)}); give a pattern such as *.csv"
        )
    if suffixes[0] not in SUFFIXES:
        raise ValueError(f"{files[0]}: not a table; {_ALLOWED}")
    base = os.path.commonpath([os.path.abspath(base) for base, _ in found])
    names = [Path(os.path.relpath(file, base)).with_suffix("").as_posix() for file in files]
    return tuple(_open(*each) for each in zip(files, names, _parts_of(files), strict=True))


def _is_table(path: Path) -> bool:
    # Not hidden: editors and notebooks leave copies in such folders.
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _files_at(path: Path) -> tuple[Path, list[Path]]:
    """Return the folder that names of files are relative to, and the files."""
    if path.is_dir():
        base, files = path, sorted(found for found in path.rglob("*") if _is_table(found.relative_to(path)))
    elif path.is_file():
        base, files = path.parent, [path]
    else:
        base = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        files = [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]
    if not files:
        raise ValueError(f"{path}: no such table; {_ALLOWED}")
    return base, files


def _parts_of(files: Sequence[Path]) -> list[str | None]:
    """Return the part that each file's name has as a word of its own; none if they do not name different parts."""
    named = [
        next((part for word in re.split(r"[^a-z]+", file.stem.lower()) if (part := part_named(word))), None)
        for file in files
    ]
    if len(set(named) - {None}) < 2:
        return [None] * len(files)
    if None in named:
        raise ValueError(
            f"{files[named.index(None)]}: the name has none of the words train, validation and test, as those of the "
            "other files have; rename it, or give a pattern that leaves it out"
        )
    return named


def _open(file: Path, name: str, part: str | None) -> TableFile:
    kind = file.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            return _open_delimited(file, name, part)
        if kind == ".parquet":
            return _open_parquet(file, name, part)
        return _open_json(file, name, part)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not in UTF-8 ({error}); save it as UTF-8") from None
    # pyarrow's ArrowInvalid and json's JSONDecodeError are ValueErrors; json raises RecursionError when deeply nested.
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read as a table ({_one_line(error)}); mend it or save it anew") from None


def _open_delimited(file: Path, name: str, part: str | None) -> TableFile:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
        # Spreadsheets of many countries write semicolons.
        delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
        lines.seek(0)
        columns = [column.strip() for column in next(csv.reader(lines, delimiter=delimiter), [])]
    named = [column for column in columns if column]
    if not named:
        raise ValueError("the first line names no columns")
    twice = [column for column in named if named.count(column) > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}")

    def read(_names: Sequence[str]) -> Iterator[Row]:
        filled = ((cells, swallowed) for cells, swallowed in _records(file, delimiter, len(columns)) if any(cells))
        next(filled)
        number = 0
        for cells, swallowed in filled:
            # One for each line, so that as many rows are counted as are lost.
            for _ in range(swallowed):
                yield Row(number, {}, "row is inside a cell in quotes (a quotation mark that is not doubled?)")
                number += 1
            if swallowed:
                continue
            problem = None
            if any(cells[len(columns) :]):
                problem = "row has more cells than the header (a separator that is not in quotes?)"
            elif len(cells) < len(columns):
                problem = "row has fewer cells than the header"
            yield Row(number, dict(zip(columns, cells, strict=False)), problem)
            number += 1

    return TableFile(name, part, tuple(named), frozenset(), _named(file, read))


def _records(file: Path, delimiter: str, columns: int) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of each record, the header's too, and how many lines a quotation mark in it swallowed: else 0.

    Many programs write tabs without quoting, and then a quotation mark is a letter like others. Texts hardly ever have
    tabs: if every line has as many as the header, every line is a row. All else is read with quotes. There a mark that
    nothing closes, `"ground glass`, makes one cell of all rows up to the next mark, and a cell that has line breaks is
    good; what tells them apart is that lines of the first kind have as many cells as the header.
    """
    # What is not in UTF-8 is refused below, after the row where it is.
    with file.open(encoding="utf-8-sig", newline="", errors="replace") as lines:
        by_lines = delimiter == "\t" and all(line.count("\t") == columns - 1 for line in lines if line.strip())
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if by_lines:
            yield from (([_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")], 0) for line in lines)
            return
        taken: list[str] = []
        for cells in csv.reader(_kept(lines, taken), delimiter=delimiter, strict=True):
            taken[:] = [line for line in taken if line.strip()]
            whole = [_is_row(line, delimiter, columns) for line in taken] if len(taken) > 1 else [False]
            # With tabs, a row between the others may lack cells; with commas, a line of a text may look like a row.
            swallowed = all(whole) or (delimiter == "\t" and whole[0] and whole[-1])
            yield cells, len(taken) if swallowed else 0
            taken.clear()


def _kept(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _is_row(line: str, delimiter: str, columns: int) -> bool:
    """Tell whether a line alone has as many cells as there are columns, with quotes or without."""
    return columns in (line.count(delimiter) + 1, len(next(csv.reader([line], delimiter=delimiter))))


def _unquoted(cell: str) -> str:
    """Return the content of a cell that is in quotes as a whole, any other cell as it is."""
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return quoted[1].replace('""', '"') if quoted else cell


def _open_json(file: Path, name: str, part: str | None) -> TableFile:
    def values() -> Iterator[Any]:
        with file.open(encoding="utf-8-sig") as lines:
            if file.suffix.lower() == ".json":
                content = json.load(lines)
                # {"data": [...]} or {"annotations": [...]}, as many files have it.
                lists = (
                    [value for value in content.values() if isinstance(value, list)]
                    if isinstance(content, dict)
                    else []
                )
                content = lists[0] if len(lists) == 1 else content
                if not isinstance(content, list):
                    raise ValueError(f"holds a {type(content).__name__}, not a list of rows")
                yield from content
            else:
                yield from (_parsed(line, number) for number, line in enumerate(lines, 1) if line.strip())

    def read(_: Sequence[str]) -> Iterator[Row]:
        for number, value in enumerate(values()):
            if isinstance(value, dict):
                yield Row(number, value)
            else:
                yield Row(number, {}, "row is not an object")

    # Of all rows: a patient or a fourth option may be named late.
    columns = dict.fromkeys(str(key) for value in values() if isinstance(value, dict) for key in value)
    if not columns:
        raise ValueError("holds no rows with names")
    return TableFile(name, part, tuple(columns), frozenset(), _named(file, read))


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None


def _open_parquet(file: Path, name: str, part: str | None) -> TableFile:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(file)

    def read(columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(_BATCH, columns=list(columns)):
                for cells in batch.to_pylist():
                    yield Row(number, cells)
                    number += 1

    return TableFile(name, part, tuple(schema.names), _embedded(schema), _named(file, read))


def _saved_by_datasets(folder: Path) -> tuple[TableFile, ...]:
    # Imported here because the import takes seconds.
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # of many types, Arrow's among them
        raise ValueError(
            f"{folder}: cannot be read as a folder saved by `datasets` ({_one_line(error)}); save it again"
        ) from None
    sets = dict(saved) if isinstance(saved, DatasetDict) else {"": saved}
    parts = {name: part_named(name) for name in sets}
    several = len(set(parts.values()) - {None}) > 1
    return tuple(
        _saved_set(folder, f"{folder.name}/{name}".rstrip("/"), parts[name] if several else None, data)
        for name, data in sets.items()
    )


def _saved_set(folder: Path, name: str, part: str | None, data: Any) -> TableFile:
    def read(columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        # As Arrow, so that images are not decoded.
        for batch in data.select_columns(list(columns)).with_format("arrow").iter(_BATCH):
            for cells in batch.to_pylist():
                yield Row(number, cells)
                number += 1

    schema = data.features.arrow_schema
    return TableFile(name, part, tuple(data.column_names), _embedded(schema), _named(folder, read))


def _embedded(schema: Any) -> frozenset[str]:
    """Return the columns of bytes, or of structures with bytes (`datasets`' Image), or of lists of these."""
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        if types.is_list(kind) or types.is_large_list(kind):
            return holds_bytes(kind.value_type)
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    return frozenset(field.name for field in schema if holds_bytes(field.type))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _named(file: Path, read: Callable[[Sequence[str]], Iterator[Row]]) -> Callable[[Sequence[str]], Iterator[Row]]:
    """Return `read` with the file's name in its errors."""

    def reading(columns: Sequence[str]) -> Iterator[Row]:
        number = -1
        try:
            for row in read(columns):
                number = row.number
                yield row
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not in UTF-8 after row {number} ({error}); save it as UTF-8") from None
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            raise ValueError(
                f"{file}: cannot be read after row {number} ({_one_line(error)}); mend or replace the file"
            ) from None

    return reading
