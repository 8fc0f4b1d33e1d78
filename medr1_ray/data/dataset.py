"""The questions of a run: read, filtered, split into training and evaluation."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medr1_ray.config import DataSettings
from medr1_ray.data.pass_rates import filter_by_pass_rate, read_pass_rates
from medr1_ray.data.phantoms import ensure_dataset
from medr1_ray.data.questions import MODALITIES, QUESTION_TYPES
from medr1_ray.data.readers.medr1 import read_medr1_files
from medr1_ray.data.readers.omnimedvqa import read_omnimedvqa
from medr1_ray.data.readers.prepared import read_split
from medr1_ray.data.readers.rows import Dropped, ReadResult, dropped_by_reason
from medr1_ray.data.splits import split_by_image
from medr1_ray.types import Question


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
            "train by modality: " + _counts(Counter(question.modality for question in self.train)),
            "train by question type: " + _counts(Counter(question.question_type for question in self.train)),
            *self.notes,
        ]
        if self.dropped:
            lines.append(f"dropped: {len(self.dropped)} rows: " + _counts(dropped_by_reason(self.dropped)))
        return "\n".join(lines)


def open_dataset(settings: DataSettings) -> Dataset:
    """Read the dataset of a run; draw phantoms first if they are not on disk yet.

    The result depends only on the settings and the files.

    Raises:
        ValueError: if the root or its files are missing, a filter has an unknown name, or no question is left.
    """
    check_dataset(settings)
    train, held_out, dropped = _read(settings)
    train, held_out = _filtered(train, settings), _filtered(held_out, settings)
    for name, questions in (("training", train), ("evaluation", held_out)):
        if not questions:
            raise ValueError(
                f"data.root={settings.root}: no {name} question is left. Check data.modalities="
                f"{list(settings.modalities)} and data.question_types={list(settings.question_types)} (empty "
                f"keeps all) and the rows dropped: {_counts(dropped_by_reason(dropped)) or 'none'}"
            )
    # Pass rates filter only the training questions, so that evaluations stay comparable.
    evaluation = stratified_sample(held_out, settings.eval_questions, settings.seed)
    train, notes = _within_pass_rates(train, settings)
    dataset = Dataset(train, evaluation, dropped, notes)
    # `medr1` and `prepared` bring splits of their own, and Med-R1's released ones were made by row.
    assert settings.format in ("medr1", "prepared") or dataset.shared_images == 0
    return dataset


def check_dataset(settings: DataSettings) -> bool:
    """Check names without reading data; return whether there are data to read, which phantoms may not be yet.

    Raises:
        ValueError: a filter has an unknown name.
    """
    _check_filter("data.modalities", settings.modalities, MODALITIES)
    _check_filter("data.question_types", settings.question_types, QUESTION_TYPES)
    weighted = tuple(settings.sampling_weights)
    _check_filter("data.sampling_weights", weighted, (*MODALITIES, *QUESTION_TYPES))
    return settings.format != "phantoms" or _phantoms_folder(settings).exists()


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


def _read(
    settings: DataSettings,
) -> tuple[tuple[Question, ...], tuple[Question, ...], tuple[Dropped, ...]]:
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
        if not split.parts[settings.eval_part]:
            raise ValueError(
                f"data.eval_part={settings.eval_part}: data.split={settings.split} has no questions in this part; it "
                "has " + ", ".join(f"{part} {len(questions)}" for part, questions in split.parts.items())
            )
        return split.parts["train"], split.parts[settings.eval_part], split.dropped
    if settings.format == "medr1":
        assert settings.train_file is not None  # config/checks.py requires both files for this format
        assert settings.eval_file is not None
        train = read_medr1_files(root, settings.train_file)
        held_out = read_medr1_files(root, settings.eval_file)
        return train.questions, held_out.questions, train.dropped + held_out.dropped
    result: ReadResult = read_omnimedvqa(root)
    return *split_by_image(result.questions, root, settings.eval_fraction, settings.seed), result.dropped


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


def _check_filter(key: str, given: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise ValueError(f"{key}: {unknown[0]!r} is unknown; use names from {', '.join(allowed)}")


def _images(questions: Iterable[Question]) -> set[str]:
    return {question.image_path for question in questions}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
