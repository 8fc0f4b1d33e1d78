"""Shared parts of the readers: rows become questions, or are dropped and counted by reason."""

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

MAX_ANNOTATION_BYTES = 256 * 2**20
"""Ten times the size of OmniMedVQA's largest file."""


@dataclass(frozen=True)
class Dropped:
    """A row that did not become a question; `file` is relative to the dataset's root, `row` counts from 0.

    `chosen` says that the settings ask for it: rows of another kind, in another language.
    """

    file: str
    row: int
    reason: str
    chosen: bool = False


@dataclass(frozen=True)
class ReadResult:
    """The rows of one or more annotation files; each is either a question or dropped."""

    questions: tuple[Question, ...]
    dropped: tuple[Dropped, ...]


def dropped_by_reason(dropped: tuple[Dropped, ...]) -> dict[str, int]:
    """Return the number of dropped rows by reason, largest first."""
    return dict(Counter(row.reason for row in dropped).most_common())


def load_rows(file: Path) -> list[Any]:
    """Return the rows of an annotation file: a JSON list in UTF-8, with or without a byte-order mark.

    Raises:
        ValueError: if the file cannot be read, is too large, or does not hold a list.
    """
    try:
        if file.stat().st_size > MAX_ANNOTATION_BYTES:
            raise ValueError(f"larger than {MAX_ANNOTATION_BYTES // 2**20} MiB")
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    # json raises RecursionError for deeply nested files.
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error}); give an annotation file") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file}: holds a {type(rows).__name__}; an annotation file is a list of rows")
    return rows


def read_rows(
    root: Path, file: Path, parse: Callable[[dict[str, Any], str], Question], name: str | None = None
) -> ReadResult:
    """Read a JSON list of rows into questions; rows for which `parse` raises RowError are dropped.

    `parse` takes a row and the question's id, `<name>:<row>`; `name` defaults to the file's stem.

    Raises:
        ValueError: if the file cannot be read or does not hold a list.
    """
    questions: list[Question] = []
    dropped: list[Dropped] = []
    for index, row in enumerate(load_rows(file)):
        try:
            if not isinstance(row, dict):
                raise RowError("row is not an object")
            questions.append(parse(row, f"{name or file.stem}:{index}"))
        except RowError as reason:
            dropped.append(Dropped(relative_path(root, file), index, str(reason)))
    return ReadResult(tuple(questions), tuple(dropped))


def text_of(row: dict[str, Any], key: str) -> str:
    """Return the stripped text under `key`; raise RowError if there is none."""
    value = row.get(key)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise RowError(f"no {key}")
    if not isinstance(value, str):
        raise RowError(f"{key} is no text")
    # `isprintable` is fast and clears almost every text, which spares the loop over its characters.
    if not value.isprintable() and any(0xD800 <= ord(letter) < 0xE000 or letter == "\0" for letter in value):
        # Half a surrogate pair can be neither encoded nor tokenized, and a path must not contain a NUL.
        raise RowError(f"{key} holds characters that no text has")
    return value.strip()


def relative_path(root: Path, path: str | Path) -> str:
    """Return `path` relative to `root`, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def image_path(root: Path, path: str, images_needed: bool) -> str:
    """Return the absolute path of an image that a row names relative to `root`.

    Raises:
        RowError: if the path leads out of `root`, or if `images_needed` and it does not name a usable file.
    """
    absolute = os.path.abspath(root)
    # Not `realpath`: the images' folder may be a link to another disk. `refuse_missing_image` looks at links.
    full = os.path.normpath(os.path.join(absolute, path))
    if not full.startswith(absolute.rstrip(os.sep) + os.sep):  # the root may be `/`
        raise RowError("image path leads out of the dataset's folder")
    if images_needed:
        refuse_missing_image(root, full)
    return full


def refuse_missing_image(root: Path, path: str) -> None:
    """Raise RowError if the absolute `path` below `root` is not a file, or as `refuse_link_out`."""
    if not os.path.isfile(path):
        exists = os.path.lexists(path)
        raise RowError("image path is no regular file" if exists else "image file not found")
    refuse_link_out(root, path)


def refuse_link_out(root: Path, path: str) -> None:
    """Raise RowError if the absolute `path` below `root` is, or goes through, a link that leads out of the dataset.

    A folder directly below `root` may itself be a link (`Images` on another disk).
    """
    parts = Path(os.path.relpath(path, root)).parts
    top = os.path.realpath(os.path.join(root, *parts[:1]) if len(parts) > 1 else root)
    if os.path.commonpath([top, os.path.realpath(path)]) != top:
        raise RowError("image is a link that leads out of the dataset's folder")


def refuse_ambiguous_gold(options: tuple[str, ...], answer: int) -> None:
    """Raise RowError if another option has the gold option's text; repeated wrong options are harmless."""
    if options.count(options[answer]) > 1:
        raise RowError("gold option occurs twice")
