"""The questions of a run: read, filtered, split into training and evaluation."""

from __future__ import annotations

import json
import random
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medr1_ray.base.signs_of_life import still
from medr1_ray.config import DataSettings
from medr1_ray.data.pass_rates import filter_by_pass_rate, read_pass_rates
from medr1_ray.data.phantoms import ensure_dataset
from medr1_ray.data.prepare.scans import proposal
from medr1_ray.data.questions import MODALITIES, QUESTION_TYPES, UNKNOWN
from medr1_ray.data.readers.medr1 import read_medr1_files
from medr1_ray.data.readers.omnimedvqa import read_omnimedvqa
from medr1_ray.data.readers.prepared import PARTS, read_split
from medr1_ray.data.readers.rows import Dropped, ReadResult, dropped_by_reason, relative_path
from medr1_ray.data.readers.table.reader import TableReader
from medr1_ray.data.readers.views import medical_format, split_view
from medr1_ray.data.splits import split_by_image
from medr1_ray.data.stream import visits_per_epoch
from medr1_ray.types import Question

_FEW, _FEW_OF_ALL = 3, 0.02
"""So many rows, or so large a part of all, may be dropped without a warning, if the settings do not ask for it."""


@dataclass(frozen=True)
class Dataset:
    """Training and evaluation questions of a run.

    `evaluation` is the sample that the run evaluates on; `dropped` lists the rows that could not be read; `notes` are
    lines about other questions that were left out.
    """

    train: tuple[Question, ...]
    evaluation: tuple[Question, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...] = ()

    @property
    def shared_images(self) -> int:
        """Number of evaluation images that are also in training: 0 unless the dataset's files were split by row."""
        return len(_images(self.train) & _images(self.evaluation))

    @property
    def description(self) -> str:
        """Summary in a few lines, for the terminal and the run's log."""
        lines = [
            f"train: {len(self.train)} questions on {len(_images(self.train))} images",
            f"evaluation: {len(self.evaluation)} questions on {len(_images(self.evaluation))} images, "
            f"{self.shared_images} of them also in training",
        ]
        if self.train:  # benchmarks have no such part
            lines += [
                "train by modality: " + _counts(Counter(question.modality for question in self.train)),
                "train by question type: " + _counts(Counter(question.question_type for question in self.train)),
            ]
        lines += self.notes
        if self.dropped:
            lines.append(self._left_out())
        return "\n".join(lines)

    def _left_out(self) -> str:
        first = self.dropped[0]
        unasked = sum(not row.chosen for row in self.dropped)
        many = unasked > max(_FEW, _FEW_OF_ALL * (unasked + len(self.train) + len(self.evaluation)))
        return (
            f"{'WARNING: many rows dropped' if many else 'dropped'}: {len(self.dropped)} rows: "
            f"{_counts(dropped_by_reason(self.dropped))}; the first is row {first.row} (from 0) of {first.file}"
        )


def open_dataset(settings: DataSettings, train_needed: bool = True) -> Dataset:
    """Read the dataset of a run; draw phantoms first if they are not on disk yet.

    The result depends only on the settings and the files. Benchmarks have no questions to train on: `train_needed` says
    whether they are refused.

    Raises:
        ValueError: if the root or its files are missing, a filter or a weight names nothing that the data has, or no
            question is left.
    """
    with still(f"reading {settings.format} data below {settings.root}"):
        sides = _read(settings)
    _require_unique_ids(sides, settings)
    every = (*sides.train, *sides.held_out)
    _check_names("modalities", "modality", settings.modalities, {question.modality for question in every})
    _check_names("question_types", "question type", settings.question_types, {q.question_type for q in every})
    train, held_out = _filtered(sides.train, settings), _filtered(sides.held_out, settings)
    for name, questions in (("training", train), ("evaluation", held_out)):
        if not questions and (train_needed or name == "evaluation"):
            raise ValueError(
                f"data.root={settings.root}: no {name} question is left. Check data.modalities="
                f"{list(settings.modalities)} and data.question_types={list(settings.question_types)} (empty "
                f"keeps all) and the rows dropped: {_counts(dropped_by_reason(sides.dropped)) or 'none'}"
                + "".join(f"; {note}" for note in sides.notes)
                + (f"; or raise data.phantom_images={settings.phantom_images}" if settings.format == "phantoms" else "")
            )
    # Before the pass rates, whose file may be for other questions.
    if train:
        visits_per_epoch(train, settings.sampling_weights)
    # Pass rates filter only the training questions, so that evaluations stay comparable.
    evaluation = stratified_sample(held_out, settings.eval_questions, settings.seed)
    train, notes = _within_pass_rates(train, settings)
    dataset = Dataset(train, evaluation, sides.dropped, (*sides.notes, *notes))
    # Others may bring splits of their own, and Med-R1's released ones were made by row.
    assert settings.format not in ("phantoms", "omnimedvqa") or dataset.shared_images == 0
    return dataset


def are_there(settings: DataSettings) -> bool:
    """Return whether there are data to read: phantoms are drawn when they are first opened."""
    return settings.format != "phantoms" or _phantoms_folder(settings).exists()


def check_dataset(settings: DataSettings) -> None:
    """Raise ValueError for a filter or weight with a name that phantoms will not have, before they are drawn."""
    if are_there(settings):
        return
    there = next(path for path in (settings.root, *settings.root.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"data.root={settings.root}: {there} is a file; give a folder to draw phantoms in")
    modalities, types = ({*names} - {UNKNOWN} for names in (MODALITIES, QUESTION_TYPES))
    _check_names("modalities", "modality", settings.modalities, modalities)
    _check_names("question_types", "question type", settings.question_types, types)
    weighted = tuple(settings.sampling_weights)
    _check_names("sampling_weights", "modality or question type", weighted, modalities | types)


def stratified_sample(questions: tuple[Question, ...], wanted: int, seed: int) -> tuple[Question, ...]:
    """Return up to `wanted` questions: the strata (modality and question type) take turns, each in shuffled order.

    Every stratum is represented if `wanted` is at least the number of strata.
    """
    strata: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in questions:
        strata[question.modality, question.question_type].append(question)
    generator = random.Random(seed)
    # Sorted, so that the sample does not depend on the order of the rows.
    piles = [strata[key] for key in sorted(strata)]
    generator.shuffle(piles)
    for pile in piles:
        generator.shuffle(pile)
    in_turn = [
        pile[turn] for turn in range(max(map(len, piles), default=0)) for pile in piles if turn < len(pile)
    ]
    return tuple(in_turn[:wanted])


@dataclass(frozen=True)
class _Sides:
    """All questions to train on and to evaluate on, the rows that could not be read, and lines for the terminal."""

    train: tuple[Question, ...]
    held_out: tuple[Question, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...] = ()


def _require_unique_ids(sides: _Sides, settings: DataSettings) -> None:
    """Raise ValueError where two questions have the same id: answers and pass rates are kept by it.

    One that is both trained on and evaluated on, as where both files are the same, is one question.
    """
    first: dict[str, Question] = {}
    for side in (sides.train, sides.held_out):
        seen = set()
        for question in side:
            other = first.setdefault(question.id, question)
            if question.id in seen or other != question:
                places = " and ".join(f"{one.stem!r} about {one.image_path}" for one in (other, question))
                raise ValueError(
                    f"data.root={settings.root}: the id {question.id!r} is that of two questions: {places}; "
                    "rename one of their files, or prepare the data again"
                )
            seen.add(question.id)


def _read(settings: DataSettings) -> _Sides:
    root = settings.root
    if settings.format == "phantoms":
        root = _phantoms_folder(settings)
        try:
            ensure_dataset(root, settings.phantom_images, settings.seed)
        except ValueError as error:
            raise ValueError(f"data.root={settings.root}: {error}") from error
    elif not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder; give the folder of the dataset")
    if settings.format == "prepared":
        split = read_split(root, settings.split)
        return _sides(split.parts, settings, f"data.split={settings.split}", split.dropped)
    if settings.format == "medr1":
        assert settings.train_file is not None  # config/checks.py requires both files for this format
        assert settings.eval_file is not None
        train, held_out = read_medr1_files(root, settings.train_file, settings.eval_file)
        return _Sides(train.questions, held_out.questions, train.dropped + held_out.dropped)
    if settings.format == "table":
        return _of_table(settings)
    result: ReadResult = read_omnimedvqa(root)
    return _divided(result.questions, root, settings, result.dropped)


def _of_table(settings: DataSettings) -> _Sides:
    assert settings.table is not None  # config/checks.py requires it for this format
    image_root = settings.image_root or settings.root
    if not image_root.is_dir():
        raise ValueError(f"data.image_root={image_root} is not a folder; give the one that image paths start from")
    reader = TableReader(settings.table, settings.root, image_root, images_needed=True)
    if reader.embedded:
        raise _unprepared(settings, "its images are in the table itself")
    table = reader.read()
    scans = [row for row in table.rows if medical_format(split_view(row.question.image_path)[0])]
    if scans:
        first = scans[0].question.image_path
        raise _unprepared(settings, f"{len(scans)} rows name DICOM files or NIfTI volumes, e.g. {first}")
    if table.has_parts:
        parts = {part: tuple(row.question for row in table.rows if row.part == part) for part in PARTS}
        source = f"data.table.file={settings.table.file} (split anew with data.table.columns.split=)"
        return _sides(parts, settings, source, table.dropped, table.understood)
    questions = tuple(row.question for row in table.rows)
    if table.has_groups:
        groups = [row.group for row in table.rows]
        return _divided(questions, image_root, settings, table.dropped, table.understood, groups)
    found = proposal({relative_path(image_root, question.image_path) for question in questions})
    alone = () if found is None else (
        f"images are split one by one, but by their file names some may belong together: {found}; a column that names "
        "the patient (data.table.columns.group), or medr1_ray.data.prepare with --groups paths, keeps them together",
    )
    return _divided(questions, image_root, settings, table.dropped, (*table.understood, *alone))


def _unprepared(settings: DataSettings, problem: str) -> ValueError:
    """Return the error about images that training does not read, with the command that writes them to files."""
    assert settings.table is not None
    table = settings.table.model_dump(mode="json", exclude_defaults=True)
    command = ["python", "-m", "medr1_ray.data.prepare", "data.format=table", f"data.root={settings.root}"]
    if settings.image_root:
        command.append(f"data.image_root={settings.image_root}")
    command.append(f"data.table={json.dumps(table, ensure_ascii=False)}")
    return ValueError(
        f"data.table.file={settings.table.file}: {problem}; write them to image files first: "
        f"{shlex.join(command)} --out DIR, then train with data.format=prepared data.root=DIR data.table=null "
        "data.image_root=null"
    )


def _sides(
    parts: Mapping[str, tuple[Question, ...]],
    settings: DataSettings,
    source: str,
    dropped: tuple[Dropped, ...],
    notes: tuple[str, ...] = (),
) -> _Sides:
    """Return the training part and the part that the settings evaluate on."""
    if not parts[settings.eval_part]:
        raise ValueError(
            f"data.eval_part={settings.eval_part}: {source} has no questions in this part; it has "
            + ", ".join(f"{part} {len(questions)}" for part, questions in parts.items())
            + ". Give a part that has some, or another split"
        )
    return _Sides(parts["train"], parts[settings.eval_part], dropped, notes)


def _divided(
    questions: tuple[Question, ...],
    root: Path,
    settings: DataSettings,
    dropped: tuple[Dropped, ...],
    notes: tuple[str, ...] = (),
    groups: Sequence[str | None] | None = None,
) -> _Sides:
    """Return the two sides of questions that come without a split."""
    division = split_by_image(questions, root, settings.eval_fraction, settings.seed, groups)
    return _Sides(division.train, division.evaluation, dropped, (*notes, *division.notes))


def _phantoms_folder(settings: DataSettings) -> Path:
    # One per seed and number of images: `ensure_dataset` refuses a folder with other parameters.
    return settings.root / f"seed-{settings.seed}-images-{settings.phantom_images}"


def _within_pass_rates(
    train: tuple[Question, ...], settings: DataSettings
) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    if not isinstance(settings.pass_rates, Path):
        return train, ()
    lowest, highest = settings.min_pass_rate, settings.max_pass_rate
    filtered = filter_by_pass_rate(train, read_pass_rates(settings.pass_rates), lowest, highest)
    note = (
        f"left out of training by pass rate: {filtered.too_hard} below {lowest:g}, {filtered.too_easy} above "
        f"{highest:g}; {filtered.unmeasured} without a pass rate kept"
    )
    if not filtered.questions:
        raise ValueError(f"data.pass_rates={settings.pass_rates}: no training question is left ({note})")
    return filtered.questions, (note,)


def _filtered(questions: tuple[Question, ...], settings: DataSettings) -> tuple[Question, ...]:
    return tuple(
        question
        for question in questions
        if (not settings.modalities or question.modality in settings.modalities)
        and (not settings.question_types or question.question_type in settings.question_types)
    )


_ALL_KEPT = {
    "modalities": "data.modalities=[] keeps all",
    "question_types": "data.question_types=[] keeps all",
    "sampling_weights": "data.sampling_weights={} weighs all alike",
}


def _check_names(key: str, what: str, given: tuple[str, ...], present: set[str]) -> None:
    if absent := [repr(name) for name in given if name not in present]:
        verb = f"is not a {what}" if len(absent) == 1 else f"are not each a {what}"
        raise ValueError(
            f"data.{key}={list(given)}: {', '.join(absent)} {verb} of the data; it has {', '.join(sorted(present))} "
            f"({_ALL_KEPT[key]})"
        )


def _images(questions: Iterable[Question]) -> set[str]:
    return {question.image_path for question in questions}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
