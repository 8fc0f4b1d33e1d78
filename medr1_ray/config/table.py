"""Settings of a table of questions (`data.format: table`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medr1_ray.config.field_types import Expanded, Settings
from medr1_ray.types import LETTERS

TableAnswers = Literal["letter", "text", "index_from_0", "index_from_1", "yes_is_1"]


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

    file: Annotated[str | tuple[str, ...], Expanded]
    """A CSV, TSV, JSON, JSON Lines or Parquet file, a folder or pattern (`*`) of such files, or a folder written by
    `datasets`' `save_to_disk`; relative to `data.root`. Several together are one table."""
    columns: TableColumns = TableColumns()
    answers: TableAnswers | None = None
    """What the answers are; null finds it out, and refuses a table that can be read in two ways. `yes_is_1`: 1 is the
    option yes (true, positive, present, ...) and 0 the option no, wherever they stand."""
    options: tuple[str, ...] = ()
    """The options of every row, e.g. yes and no, where the table has none. Rows with another answer are left out."""
    where: dict[str, str] = Field(default_factory=dict)
    """Columns and the value that a row must have there, whatever its case; an empty one asks for an empty cell."""
    question_until: str | None = None
    """Text from which on a question is cut off, e.g. what comes before the options where they are in its text too."""

    @property
    def files(self) -> tuple[str, ...]:
        """All that `file` names."""
        return (self.file,) if isinstance(self.file, str) else self.file

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.files or not all(self.files):
            raise ValueError(f"data.table.file={self.file!r} names no file; give one, relative to data.root")
        return self

    @model_validator(mode="after")
    def _options(self) -> Self:
        given = f"data.table.options={list(self.options)}"
        if self.options and self.columns.options:
            raise ValueError(
                f"{given} with data.table.columns.options={self.columns.options}: either the table has options or "
                "these are the same for all rows; give one of them"
            )
        if self.options and not (2 <= len(set(self.options)) == len(self.options) <= len(LETTERS)):
            raise ValueError(f"{given}: give 2 to {len(LETTERS)} different options, or none")
        return self
