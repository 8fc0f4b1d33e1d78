"""Finding the columns of a table: by the names that the user gives, else by the names that tables usually have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medr1_ray.config import TableColumns
from medr1_ray.types import LETTERS

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "image path, image file, image name, img, img path, file name, file, path, figure path"),
    "question": ("question", "question text, query, stem"),
    "options": ("options", "choices, answer choices, candidates"),
    "answer": (
        "answer",
        "gt answer, gold, gold answer, correct answer, correct option, correct, ground truth, label, target, "
        "answer idx, answer index, answer label",
    ),
    "modality": ("modality", "modality type, image modality, imaging modality"),
    "question_type": ("question type", "q type, task, task type"),
    "source": ("source", "dataset, data source"),
    "split": ("split", "data split, partition"),
    "group": (
        "group, group id",
        "patient, patient id, subject, subject id, participant id, pid",
        "study, study id, case, case id",
    ),
}
"""By key, lists of names in order of preference: the first list that a table has a name of must have no other of them.
Case, spaces, dashes and underscores do not count. Columns of single options are found by `_OPTION`."""

NEEDED = ("image", "question", "answer")

_OPTION = re.compile(rf"(?:option|choice|opt|op|answer)?([{LETTERS}]|\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they hold.

    `options` is empty if the options are in the question's text, or those in `all_options` are the options of all rows.
    """

    image: str
    question: str
    options: tuple[str, ...]
    answer: str
    modality: str | None
    question_type: str | None
    source: str | None
    split: str | None
    group: str | None
    id: str | None
    all_options: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """All columns except the image's, without repetition."""
        single = (self.question, self.answer, self.modality, self.question_type, self.source, self.split, self.group)
        return list(dict.fromkeys(name for name in (*single, self.id, *self.options) if name is not None))

    @property
    def description(self) -> str:
        """What each column is taken for, in one line."""
        found = {
            "image": self.image,
            "question": self.question,
            "options": ", ".join(self.options) or " or ".join(self.all_options) or f"in the text of {self.question}",
            "answer": self.answer,
            "modality": self.modality,
            "question type": self.question_type,
            "source": self.source,
            "split": self.split,
            "group": self.group,
            "id": self.id,
        }
        return ", ".join(f"{key} = {name}" for key, name in found.items() if name is not None)


def find_columns(
    names: Sequence[str], given: TableColumns, table: str, all_options: tuple[str, ...] = ()
) -> Columns:
    """Return the columns of a table that has columns with these `names`; `table` names it in errors.

    Columns of options are not looked for where all rows have the same, `all_options`.

    Raises:
        ValueError: if a given column is not there, or one that is needed is not found or found twice.
    """
    found = {key: _find(key, names, getattr(given, key), table) for key in USUAL_NAMES if key != "options"}
    for key in NEEDED:
        if found[key] is None:
            raise ValueError(
                f"{table}: no column is known to hold the {key}; it has {', '.join(names)}; name it with "
                f"data.table.columns.{key}=NAME (prepare: --columns {key}=NAME)"
            )
    if given.id is not None and given.id not in names:
        raise _absent("id", given.id, names, table)
    return Columns(
        **found,  # type: ignore[arg-type]  # those that are needed are there
        options=() if all_options else _options(names, given.options, table),
        all_options=all_options,
        id=given.id or None,
    )


def _find(key: str, names: Sequence[str], given: str | None, table: str) -> str | None:
    if given == "":
        return None
    if given is not None:
        if given not in names:
            raise _absent(key, given, names, table)
        return given
    for usual in USUAL_NAMES[key]:
        wanted = {_plain(name) for name in usual.split(",")}
        found = [name for name in names if _plain(name) in wanted]
        if len(found) > 1:
            raise ValueError(
                f"{table}: {' and '.join(found)} may each hold the {key}; it has {', '.join(names)}; choose with "
                f"data.table.columns.{key}={found[0]} (prepare: --columns {key}={found[0]})"
            )
        if found:
            return found[0]
    return None


def _options(names: Sequence[str], given: str | tuple[str, ...] | None, table: str) -> tuple[str, ...]:
    if given is not None:
        chosen = tuple(name for name in ((given,) if isinstance(given, str) else given) if name)
        for name in chosen:
            if name not in names:
                raise _absent("options", name, names, table)
        return chosen
    single: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _OPTION.fullmatch(_plain(name)):
            single.setdefault(_plain(name)[: match.start(1)], {})[match[1].upper()] = name
    # All of A, B, C, ... or of 1, 2, 3, ... or of 0, 1, 2, ..., with the same word before them.
    series = [
        tuple(columns[mark] for mark in marks[: len(columns)])
        for columns in single.values()
        for marks in (LETTERS, [str(n) for n in range(1, 27)], [str(n) for n in range(26)])
        if len(columns) >= 2 and set(columns) == set(marks[: len(columns)])
    ]
    together = _find("options", names, None, table)
    if together is not None:
        return (together,)
    if len(series) > 1:
        raise ValueError(
            f"{table}: {' or '.join(', '.join(columns) for columns in series)} may hold the options; choose with "
            f"data.table.columns.options=[{', '.join(series[0])}] (prepare: --columns options={','.join(series[0])})"
        )
    return series[0] if series else ()


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name).lower()


def _absent(key: str, given: str, names: Sequence[str], table: str) -> ValueError:
    return ValueError(f"data.table.columns.{key}={given} is not a column of {table}; it has {', '.join(names)}")
