"""Questions of a table: every row becomes one, or is dropped and counted by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from medr1_ray.config import TableAnswers, TableSettings
from medr1_ray.data.questions import UNKNOWN, RowError, canonical_modality, canonical_question_type
from medr1_ray.data.readers.rows import Dropped, dropped_by_reason, image_path, refuse_ambiguous_gold, text_of
from medr1_ray.data.readers.table.columns import Columns, find_columns
from medr1_ray.data.readers.table.files import Row, TableFile, open_table, part_named
from medr1_ray.data.readers.table.gold import NAMES, Ambiguous, option_of, settle
from medr1_ray.data.readers.table.options import options_of, plain_text, split_text
from medr1_ray.data.readers.views import refuse_view_of_image, split_view
from medr1_ray.types import LETTERS, Question

_SEVERAL_FILES = re.compile(r"\.[a-z0-9]{3,4}['\"]?\s*[;,|]\s*['\"]?\S", re.IGNORECASE)
# What pandas writes after whole numbers into a CSV file whose column has a gap; other files of the table may have none.
_WHOLE = re.compile(r"(\d+)\.0")

_SHOWN = 300
"""Characters of a question or its options in a preview."""


@dataclass(frozen=True)
class TableRow:
    """A row that became a question. `group` and `part` are None where the table does not tell.

    The image of `question` is its absolute path, with the frame or slice that the table names (`readers/views.py`); of
    an image that is in the table itself, the path is empty.
    """

    question: Question
    file: str
    number: int
    group: str | None
    part: str | None


@dataclass(frozen=True)
class Table:
    """The rows of a table; `understood` says in a few lines what its columns and answers were taken for."""

    rows: tuple[TableRow, ...]
    dropped: tuple[Dropped, ...]
    understood: tuple[str, ...]
    has_parts: bool
    has_groups: bool


class _NotChosen(RowError):
    """A row that the settings leave out: by `data.table.where`, or by naming the options of all rows."""


@dataclass(frozen=True)
class _Draft:
    """A row of a file without its gold option."""

    file: TableFile
    number: int
    id: str
    image: str
    stem: str
    options: tuple[str, ...]
    answer: str
    modality: str
    question_type: str
    source: str
    group: str | None
    part: str | None


class TableReader:
    """An opened table, of which nothing but names of columns has been read.

    Args:
        settings: the table, its columns and its answers.
        root: folder that the table's path is relative to.
        image_root: folder that image paths are relative to.
        images_needed: whether rows whose image file is not there are dropped.

    Raises:
        ValueError: if there is no such table, or its columns cannot be told.
    """

    def __init__(self, settings: TableSettings, root: Path, image_root: Path, images_needed: bool) -> None:
        self.path = root / settings.files[0]
        self.files = open_table(*(root / file for file in settings.files))
        self._settings = settings
        self._image_root = image_root
        self._images_needed = images_needed
        columns = self.files[0].columns
        for file in self.files[1:]:
            if set(file.columns) != set(columns):
                raise ValueError(
                    f"{self.path}: {file.name} has the columns {', '.join(file.columns)}, but {self.files[0].name} has "
                    f"{', '.join(columns)}; give files with the same columns"
                )
        self.columns: Columns = find_columns(columns, settings.columns, str(self.path), settings.options)
        where = settings.where
        if absent := [f"data.table.where.{name}={where[name]}" for name in where if name not in columns]:
            raise ValueError(f"{', '.join(absent)} is about no column of {self.path}; it has {', '.join(columns)}")

    @property
    def embedded(self) -> bool:
        """Whether the images are in the table itself."""
        return self.columns.image in self.files[0].embedded

    @property
    def unused(self) -> list[str]:
        """The columns that are taken for nothing: a patient's under a name of its own, say."""
        used = {self.columns.image, *self.columns.texts, *self._settings.where}
        return [name for name in self.files[0].columns if name not in used]

    @property
    def has_parts(self) -> bool:
        """Whether the table says which part each row belongs to."""
        return self.columns.split is not None or self.files[0].part is not None

    def preview(self, count: int) -> list[str]:
        """Return what the first `count` rows are understood as, in a few lines."""
        lines = [f"columns: {self.columns.description}"]
        if unused := self.unused:
            lines.append(f"columns not used: {', '.join(unused)} (data.table.columns or --columns name them)")
        drafts = list(islice(self._drafts(), count))
        try:
            ways = self._ways([draft for draft in drafts if isinstance(draft, _Draft)])
            answers = _names(ways)
        except Ambiguous as error:
            ways, answers = (), f"of these rows alone, {error}"
        for draft in drafts:
            if isinstance(draft, Dropped):
                lines.append(f"row {draft.row}: left out: {draft.reason}")
                continue
            gold = _gold(draft, ways)
            options = [f"{letter}) {option}" for letter, option in zip(LETTERS, draft.options, strict=False)]
            lines += [
                f"row {draft.number}: {self._described(draft.image)}",
                f"  question: {shorten(draft.stem, _SHOWN)}",
                f"  options: {shorten('; '.join(options), _SHOWN)}",
                f"  gold: {draft.answer!r}" + ("" if gold is None else f", which is {options[gold]}"),
            ]
        return [*lines, f"answers: {answers}"]

    def read(self) -> Table:
        """Read all rows.

        Raises:
            ValueError: if a file cannot be read, the answers or parts cannot be told, or no row becomes a question.
        """
        read = list(self._drafts())
        drafts = [draft for draft in read if isinstance(draft, _Draft)]
        dropped = [row for row in read if isinstance(row, Dropped)]
        try:
            ways = self._ways(drafts)
        except Ambiguous as error:
            raise ValueError(
                f"data.table.answers=null: {self.path}: {error}; set it (prepare: --answers) to {', '.join(NAMES)}"
            ) from None
        ids = Counter(draft.id for draft in drafts)
        rows = []
        for draft in drafts:
            try:
                if ids[draft.id] > 1:
                    raise RowError("id occurs twice")
                rows.append(self._row(draft, ways))
            except RowError as reason:
                dropped.append(_dropped(draft.file, draft.number, reason))
        unused = [f"columns not used: {', '.join(self.unused)}"] if self.unused else []
        understood = (f"columns: {self.columns.description}", *unused, f"answers: {_names(ways)}")
        if not rows:
            same = ""
            if not (self.columns.options or self.columns.all_options):
                same = "; where all rows have the same options: data.table.options=[yes,no], prepare --options yes no"
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped_by_reason(tuple(dropped)).items())
            raise ValueError(
                f"{self.path}: none of its {len(dropped)} rows became a question: {reasons or 'it has no rows'} "
                f"({'; '.join(understood)}; images below {self._image_root}: data.image_root or --image-root{same})"
            )
        has_groups = any(row.group is not None for row in rows)
        return Table(tuple(rows), tuple(dropped), understood, self.has_parts, has_groups)

    def images(self, wanted: set[tuple[str, int]]) -> Iterator[tuple[str, int, bytes | RowError]]:
        """Yield file and row of the rows `wanted`, and the content of each one's image, or why it has none."""
        for file in self.files:
            for row in file.read([self.columns.image]):
                if (file.name, row.number) in wanted:
                    yield file.name, row.number, _bytes_of(row.cells[self.columns.image])

    def _drafts(self) -> Iterator[_Draft | Dropped]:
        for file in self.files:
            names = dict.fromkeys([*self.columns.texts, *self._settings.where])
            if not self.embedded:
                names[self.columns.image] = None
            for row in file.read(list(names)):
                try:
                    yield self._draft(file, row)
                except RowError as reason:
                    yield _dropped(file, row.number, reason)

    def _draft(self, file: TableFile, row: Row) -> _Draft:
        if row.problem:
            raise RowError(row.problem)
        columns, cells = self.columns, row.cells
        for name, value in self._settings.where.items():
            if not _is(cells.get(name), value):
                raise _NotChosen(f"{name} is not {value or 'empty'}")

        def text(key: str, column: str | None) -> str:
            # Under the key, so that reasons are the same whatever a table calls its columns.
            return text_of({key: plain_text(_only(cells.get(column)), key) if column else ""}, key)

        def optional(key: str, column: str | None) -> str | None:
            return text(key, column) if column and plain_text(_only(cells.get(column)), key) else None

        stem = text("question", columns.question)
        if self._settings.question_until:
            stem = stem.partition(self._settings.question_until)[0].strip()
        if columns.all_options:
            options = columns.all_options
        elif columns.options:
            options = options_of([cells.get(name) for name in columns.options])
        else:
            stem, options = split_text(stem)
        for option in options:
            text_of({"option": option}, "option")
        group = optional("group", columns.group)
        return _Draft(
            file=file,
            number=row.number,
            id=text("id", columns.id) if columns.id else f"{file.name}:{row.number}",
            image="" if self.embedded else text_of({"image": _path_of(cells.get(columns.image))}, "image"),
            stem=text_of({"question": stem}, "question"),
            options=options,
            answer=text("answer", columns.answer),
            modality=canonical_modality(optional("modality", columns.modality) or UNKNOWN),
            question_type=canonical_question_type(optional("question_type", columns.question_type) or UNKNOWN),
            source=optional("source", columns.source) or file.name,
            group=whole[1] if group and (whole := _WHOLE.fullmatch(group)) else group,
            part=file.part if columns.split is None else self._part(text("split", columns.split)),
        )

    def _part(self, name: str) -> str:
        part = part_named(name)
        if part is None:
            raise ValueError(
                f"data.table.columns.split={self.columns.split}: {self.path} has {name!r} in this column, which is no "
                "part; use train, validation (val, dev) or test, or data.table.columns.split= (empty) to split anew"
            )
        return part

    def _described(self, image: str) -> str:
        if self.embedded:
            return "an image in the table"
        try:
            file, _ = split_view(image)
            image_path(self._image_root, file, images_needed=True)
            refuse_view_of_image(self._image_root / file, image)
        except RowError as reason:
            return f"{image} ({reason}; images are looked for below {self._image_root})"
        return image

    def _ways(self, drafts: Sequence[_Draft]) -> tuple[TableAnswers, ...]:
        return settle([draft.answer for draft in drafts], [draft.options for draft in drafts], self._settings.answers)

    def _row(self, draft: _Draft, ways: tuple[TableAnswers, ...]) -> TableRow:
        gold = _gold(draft, ways)
        if gold is None:
            odd = self._settings.answers is None and _gold(draft, tuple(NAMES)) is not None
            reason = "answer would be read in a way that too few rows need" if odd else "answer is none of the options"
            raise (_NotChosen if self.columns.all_options else RowError)(reason)
        refuse_ambiguous_gold(draft.options, gold)
        file, _ = split_view(draft.image)
        image = draft.image and image_path(self._image_root, file, self._images_needed) + draft.image[len(file) :]
        refuse_view_of_image(self._image_root / file, draft.image)
        question = Question(
            id=draft.id,
            image_path=image,
            stem=draft.stem,
            options=draft.options,
            answer=gold,
            modality=draft.modality,
            question_type=draft.question_type,
            dataset=draft.source,
        )
        return TableRow(question, draft.file.name, draft.number, draft.group, draft.part)


def _dropped(file: TableFile, number: int, reason: RowError) -> Dropped:
    return Dropped(file.name, number, str(reason), chosen=isinstance(reason, _NotChosen))


def _gold(draft: _Draft, ways: tuple[TableAnswers, ...]) -> int | None:
    found = (option_of(way, draft.answer, draft.options) for way in ways)
    return next((option for option in found if option is not None), None)


def _names(ways: tuple[TableAnswers, ...]) -> str:
    return " and ".join(NAMES[way] for way in ways) or "none is an option"


def _only(cell: Any) -> Any:
    """Return the element of a list that has one, None of an empty list, any other cell as it is."""
    if isinstance(cell, list) and len(cell) < 2:
        return cell[0] if cell else None
    return cell


def _is(cell: Any, value: str) -> bool:
    """Tell whether a cell has this value; without an image, a cell for one is empty."""
    cell = _only(cell)
    if isinstance(cell, dict | bytes):
        return not value and not (any(cell.values()) if isinstance(cell, dict) else cell)
    if isinstance(cell, list):
        return False
    return plain_text(cell, "cell").casefold() == value.strip().casefold()


def _path_of(cell: Any) -> str:
    """Return the one path in an image cell.

    Raises:
        RowError: if there are several.
    """
    cell = _only(cell)
    if isinstance(cell, list):
        raise RowError("several images")
    text = plain_text(cell, "image")
    if _SEVERAL_FILES.search(split_view(text)[0]):
        raise RowError("several images")
    return text


def _bytes_of(cell: Any) -> bytes | RowError:
    """Return the one image in a cell of bytes, of `datasets`' Image, or of a list of these."""
    cell = _only(cell)
    if isinstance(cell, list):
        return RowError("several images")
    content: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
    return content or RowError("no image")
