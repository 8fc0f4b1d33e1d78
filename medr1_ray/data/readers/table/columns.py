"""Finding the columns of a table: by the names that the user gives, else by the names that tables usually have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

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

_MARKS = (LETTERS, [str(n) for n in range(1, 27)], [str(n) for n in range(26)])
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
        ValueError: given columns are not there, needed ones are not found, or several may be meant; names all of them.
    """
    problems = _Problems()
    found = {key: _find(key, names, getattr(given, key), problems) for key in USUAL_NAMES if key != "options"}
    id_ = _find("id", names, given.id or "", problems)
    options = () if all_options else _options(names, given.options, problems)
    if missing := [key for key in NEEDED if found[key] is None and key not in problems.remedies]:
        problems.add(f"no column is known to hold the {' or the '.join(missing)}", *missing)
    if problems.said:
        raise ValueError(problems.describe(names, table))
    return Columns(
        **found,  # type: ignore[arg-type]  # those that are needed are there
        options=options,
        all_options=all_options,
        id=id_,
    )


class _Problems:
    """What is wrong with the columns of a table, all of it, and by key the names that would mend it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.remedies: dict[str, Sequence[str]] = {}

    def add(self, problem: str, *keys: str, names: Sequence[str] = ("NAME",)) -> None:
        """Add a problem that giving each of these keys one of `names`, or for options all of them, would mend."""
        self.said.append(problem)
        self.remedies |= dict.fromkeys(keys, names)

    def describe(self, names: Sequence[str], table: str) -> str:
        settings = [
            f"data.table.columns.{key}=" + (of[0] if len(of) == 1 else f"[{', '.join(of)}]")
            for key, of in self.remedies.items()
        ]
        arguments = [f"{key}={','.join(of)}" for key, of in self.remedies.items()]
        return (
            f"{table}: {'; '.join(self.said)}; it has {', '.join(names)}; give {' '.join(settings)} "
            f"(prepare: --columns {' '.join(arguments)})"
        )


def _find(key: str, names: Sequence[str], given: str | None, problems: _Problems) -> str | None:
    if given == "":
        return None
    if given is not None:
        _require(key, given, names, problems)
        return given
    for usual in USUAL_NAMES[key]:
        wanted = {_plain(name) for name in usual.split(",")}
        found = [name for name in names if _plain(name) in wanted]
        if len(found) > 1:
            problems.add(f"{' and '.join(found)} may each hold the {key}", key, names=found[:1])
        if found:
            return found[0]
    return None


def _options(names: Sequence[str], given: str | tuple[str, ...] | None, problems: _Problems) -> tuple[str, ...]:
    if given is not None:
        chosen = tuple(name for name in ((given,) if isinstance(given, str) else given) if name)
        for name in chosen:
            _require("options", name, names, problems)
        return chosen
    together = _find("options", names, None, problems)
    if together is not None:
        return (together,)
    single: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _OPTION.fullmatch(_plain(name)):
            single.setdefault(_plain(name)[: match.start(1)], {})[match[1].upper()] = name
    several = [columns for columns in single.values() if len(columns) >= 2]
    series = [found for columns in several if (found := _series(columns))]
    broken = [said for columns in several if (said := _broken(columns))]
    if len(series) > 1:
        problems.add(
            f"{' or '.join(', '.join(columns) for columns in series)} may hold the options", "options", names=series[0]
        )
    if broken and not series:
        problems.add(broken[0], "options")
    return series[0] if series else ()


def _series(columns: dict[str, str]) -> tuple[str, ...]:
    """Return the columns of A, B, C, ... or of 1, 2, 3, ... or of 0, 1, 2, ..., with the same word before them.

    Others may be far from them, such as `x` and `y`; where they are near, some are missing (`_broken`).
    """
    if _broken(columns):
        return ()
    runs = (list(takewhile(columns.__contains__, marks)) for marks in _MARKS)
    longest = max(runs, key=len)
    return tuple(columns[mark] for mark in longest) if len(longest) >= 2 else ()


def _broken(columns: dict[str, str]) -> str | None:
    """Say why columns that look like those of options are none; None if they do not look so, such as years."""
    seem = f"{', '.join(columns.values())} seem to be the options"
    if len(columns) > len(LETTERS):
        return f"{seem}, but they are {len(columns)}, and a question can have {len(LETTERS)} at most"
    missing = min(
        (_missing(columns, marks) for marks in _MARKS if columns.keys() <= set(marks)), key=len, default=[]
    )
    if not 0 < len(missing) <= len(columns):
        return None
    return f"{seem}, but there is none for {', '.join(missing)} (an empty name: they are in the question's text)"


def _missing(columns: dict[str, str], marks: Sequence[str]) -> list[str]:
    """Return the marks without a column before the last that has one."""
    return [mark for mark in marks[: max(map(marks.index, columns))] if mark not in columns]


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name).lower()


def _require(key: str, given: str, names: Sequence[str], problems: _Problems) -> None:
    if given not in names:
        problems.add(f"data.table.columns.{key}={given} is not a column", key)
