"""Settings of a table of questions (`data.format: table`)."""

from __future__ import annotations

from typing import Literal

from medr1_ray.config.field_types import Settings

TableAnswers = Literal["letter", "text", "index_from_0", "index_from_1"]


class TableColumns(Settings):
    """The table's own name of each column. One that is not given is found by its usual names
    (`data/readers/table/columns.py`); an empty name says that the table has no such column."""

    image: str | None = None
    """Path of the image, or the image itself (`datasets`' type Image, or bytes)."""
    question: str | None = None
    options: str | tuple[str, ...] | None = None
    """One column (a list, a mapping of letters, or a text such as `A) CT B) MRI`), or one for each option."""
    answer: str | None = None
    modality: str | None = None
    question_type: str | None = None
    source: str | None = None
    split: str | None = None
    """The part of each row: train, validation or test."""
    group: str | None = None
    """What must not be divided by a split: the patient or the study."""
    id: str | None = None


class TableSettings(Settings):
    """A table of questions."""

    file: str
    """A CSV, TSV, JSON, JSON Lines or Parquet file, a folder or pattern (`*`) of such files, or a folder written by
    `datasets`' `save_to_disk`; relative to `data.root`."""
    columns: TableColumns = TableColumns()
    answers: TableAnswers | None = None
    """What the answers are; null finds it out, and refuses a table that can be read in two ways."""
