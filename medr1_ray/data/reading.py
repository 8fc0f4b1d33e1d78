"""What every reader of annotation files shares: rows become questions or are dropped for a counted reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medr1_ray.data.questions import RowError
from medr1_ray.types import Question


@dataclass(frozen=True)
class Dropped:
    """A row that did not become a question: `file` relative to the dataset's root, `row` from 0."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True)
class ReadResult:
    """All rows of some annotation files: rows read = questions + dropped."""

    questions: tuple[Question, ...]
    dropped: tuple[Dropped, ...]


def dropped_by_reason(dropped: tuple[Dropped, ...]) -> dict[str, int]:
    """Counts by reason, largest first."""
    return dict(Counter(row.reason for row in dropped).most_common())


def read_rows(root: Path, file: Path, parse: Callable[[dict[str, Any], str], Question]) -> ReadResult:
    """Read a JSON list of rows; `parse` takes a row and the question's id (`<file's stem>:<row>`).

    Raises:
        ValueError: if the file cannot be read or holds no list.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error}); give an annotation file") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file}: holds a {type(rows).__name__}; an annotation file is a list of rows")
    questions: list[Question] = []
    dropped: list[Dropped] = []
    for index, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise RowError("row is not an object")
            questions.append(parse(row, f"{file.stem}:{index}"))
        except RowError as reason:
            dropped.append(Dropped(Path(os.path.relpath(file, root)).as_posix(), index, str(reason)))
    return ReadResult(tuple(questions), tuple(dropped))


def text_of(row: dict[str, Any], key: str) -> str:
    """The stripped text under `key`. Raises RowError where there is none."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"no {key}")
    return value.strip()


def image_path(root: Path, path: str, images_needed: bool) -> str:
    """The absolute path of an image that a row names relative to `root`.

    Raises:
        RowError: if it leads out of `root`, or `images_needed` and there is no such file.
    """
    absolute = os.path.abspath(root)
    full = os.path.normpath(os.path.join(absolute, path))
    if not full.startswith(absolute + os.sep):
        raise RowError("image path leads out of the dataset's folder")
    if images_needed and not os.path.isfile(full):
        raise RowError("image file not found")
    return full


def refuse_ambiguous_gold(options: tuple[str, ...], answer: int) -> None:
    """Raise RowError where another option has the gold's text; repeated wrong options do no harm."""
    if options.count(options[answer]) > 1:
        raise RowError("gold option occurs twice")
