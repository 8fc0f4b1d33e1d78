"""Matrices from answers: accuracies with intervals, compared with a blank image and the blind prior, and their means.

Legend: N questions, M models, C columns, R replicates of the bootstrap over images. All models of an axis answer the
same questions, so one set of replicates serves every cell and every difference, and differences are paired.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.helpers.matrix.evaluation import BLANK, evaluation_folder, everything, held_out_questions
from benchmarks.helpers.matrix.settings import BASE, NAMES, Axis, MatrixSettings, Trained, column_of
from medr1_ray.data.blind_prior import BlindPrior
from medr1_ray.evaluation.folder import read_answers
from medr1_ray.evaluation.passes import IMAGE
from medr1_ray.evaluation.uncertainty import FEW_IMAGES, REPLICATES, Interval, accuracy_interval, interval
from medr1_ray.types import Mode, Question

MARKS = "* with the image than with a blank one, ° than the blind prior of what it was trained on"


@dataclass(frozen=True)
class Cell:
    """Results of the model of `row` on the questions of `column`; accuracies are fractions.

    `looks` says that it is better with the image than with a blank one, `beats_prior` that it is better than the blind
    prior counted over the row's training questions; both mean that the interval of the paired difference lies above 0.
    The start model's prior is chance, since it has counted nothing.
    """

    row: str
    column: str
    n: int
    images: int
    accuracy: float
    interval: Interval
    blank_image: float
    looks: bool
    blind_prior: float
    beats_prior: bool
    chance: float


@dataclass(frozen=True)
class Estimate:
    """A mean of cells, or a difference of such means, with its interval."""

    name: str
    value: float
    interval: Interval


@dataclass(frozen=True)
class Matrix:
    """One matrix; `cells` are ordered row by row, starting with the start model's."""

    axis: Axis
    mode: Mode
    method: str
    cells: tuple[Cell, ...]
    estimates: tuple[Estimate, ...]

    @property
    def name(self) -> str:
        return f"{self.axis}-{self.mode}-{self.method}"

    @property
    def row_names(self) -> tuple[str, ...]:
        return (BASE, *NAMES[self.axis])


@dataclass(frozen=True)
class _Measured:
    """The rows of one matrix: `correct` [M, N], and the `cell_replicates` of `correct`, of the answers to blank images
    and of the blind priors."""

    correct: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    blank: NDArray[np.float64]
    prior: NDArray[np.float64]


def collect(settings: MatrixSettings) -> list[Matrix]:
    """Return all matrices of an experiment; all of its models must have answered."""
    matrices = []
    for axis in dict.fromkeys(axis for axes in settings.axes.values() for axis in axes):
        questions = held_out_questions(settings, axis)
        columns = np.array([NAMES[axis].index(column_of(question, axis)) for question in questions])
        prior = _prior(settings, axis, questions)
        measured = {
            (mode, method): _measure(settings, axis, mode, method, questions, columns, prior)
            for mode, axes in settings.axes.items()
            if axis in axes
            for method in settings.methods
        }
        for (mode, method), each in measured.items():
            matrices.append(
                Matrix(
                    axis,
                    mode,
                    method,
                    _cells(axis, each, questions, columns),
                    (*_own_estimates(axis, each), *_differences(measured, mode, method)),
                )
            )
    return matrices


def cell_replicates(
    correct: NDArray[np.float64], columns: NDArray[np.int64], images: Sequence[str], replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """Return the accuracies of `correct` [M, N] by column (`columns` [N]) as float64 [1 + R, M, C].

    The first are those of the data, the others of images drawn with replacement.
    """
    _, image = np.unique(np.asarray(images), return_inverse=True)
    shape = (int(image.max()) + 1, int(columns.max()) + 1)
    counts = np.zeros(shape)
    np.add.at(counts, (image, columns), 1)
    sums = np.zeros((correct.shape[0], *shape))
    for row, target in zip(correct, sums, strict=True):
        np.add.at(target, (image, columns), row)
    generator = np.random.default_rng(0)
    drawn = np.empty((1 + replicates, correct.shape[0], shape[1]))
    for number, replicate in enumerate(drawn):
        again = generator.integers(shape[0], size=shape[0]) if number else np.arange(shape[0])
        weights = np.bincount(again, minlength=shape[0])
        # A replicate may contain no image of a column that has few. It is NaN there, and left out of intervals.
        with np.errstate(invalid="ignore"):
            replicate[:] = (weights @ sums) / (weights @ counts)
    return drawn


def shown(cell: Cell) -> str:
    """Return the accuracy in per cent, followed by the marks that `MARKS` explains."""
    return f"{100 * cell.accuracy:.0f}{'' if cell.looks else '*'}{'' if cell.beats_prior else '°'}"


def write_tables(out: Path, matrices: Sequence[Matrix]) -> None:
    """Write `results.json`, `results.csv` (one cell per line) and `results.md`."""
    (out / "results.json").write_text(json.dumps([asdict(matrix) for matrix in matrices], indent=1))
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["axis", "mode", "method", *Cell.__dataclass_fields__])
        for matrix in matrices:
            for cell in matrix.cells:
                low, high = cell.interval
                values = {**asdict(cell), "interval": f"{low:.4f} {high:.4f}"}
                writer.writerow([matrix.axis, matrix.mode, matrix.method, *values.values()])
    (out / "results.md").write_text("\n\n".join(_page(matrix) for matrix in matrices) + "\n", encoding="utf-8")


def _measure(
    settings: MatrixSettings,
    axis: Axis,
    mode: Mode,
    method: str,
    questions: Sequence[Question],
    columns: NDArray[np.int64],
    prior: NDArray[np.float64],
) -> _Measured:
    models = [None, *(Trained(axis, mode, method, name) for name in NAMES[axis])]
    folders = [evaluation_folder(settings, row, axis, mode) for row in models]
    images = [question.image_path for question in questions]
    correct, blank = (
        np.array([_correct(folder, name, questions) for folder in folders]) for name in (IMAGE, BLANK)
    )
    return _Measured(correct, *(cell_replicates(values, columns, images) for values in (correct, blank, prior)))


def _correct(folder: Path, name: str, questions: Sequence[Question]) -> list[float]:
    answers = read_answers(folder, name)
    if answers.left_out:
        id_, reason = next(iter(answers.left_out.items()))
        raise ValueError(
            f"{folder.name} left out {len(answers.left_out)} test questions, for example {id_!r} ({reason}); "
            "all models of a matrix must answer the same questions"
        )
    return [float(answers.rows[question.id]["correct"]) for question in questions]


def _prior(settings: MatrixSettings, axis: Axis, questions: Sequence[Question]) -> NDArray[np.float64]:
    """Return float64 [M, N]: the expected correctness of each row's blind prior on each question."""
    train = everything(settings).train
    own = [[question for question in train if column_of(question, axis) == name] for name in NAMES[axis]]
    # The start model, the first row, was trained on no questions.
    priors = [BlindPrior.fit(questions) for questions in ([], *own)]
    return np.array([[prior.credit(question) for question in questions] for prior in priors])


def _cells(
    axis: Axis,
    each: _Measured,
    questions: Sequence[Question],
    columns: NDArray[np.int64],
) -> tuple[Cell, ...]:
    chance = np.array([1 / len(question.options) for question in questions])
    image = np.array([question.image_path for question in questions])
    cells = []
    for m, row in enumerate((BASE, *NAMES[axis])):
        for c, column in enumerate(NAMES[axis]):
            there = columns == c
            images = len(np.unique(image[there]))
            accuracy, blank, prior = (values[:, m, c] for values in (each.accuracy, each.blank, each.prior))
            drawn = accuracy[1:][~np.isnan(accuracy[1:])]
            cells.append(
                Cell(
                    row=row,
                    column=column,
                    n=int(there.sum()),
                    images=images,
                    accuracy=float(accuracy[0]),
                    interval=accuracy_interval(each.correct[m, there], drawn, images),
                    blank_image=float(blank[0]),
                    looks=images >= FEW_IMAGES and _estimate("", accuracy - blank).interval[0] > 0,
                    blind_prior=float(prior[0]),
                    beats_prior=images >= FEW_IMAGES and _estimate("", accuracy - prior).interval[0] > 0,
                    chance=float(chance[there].mean()),
                )
            )
    return tuple(cells)


def _own_estimates(axis: Axis, each: _Measured) -> list[Estimate]:
    """Return means over cells, and the gain from training: the mean over the diagonal cells, and each of them."""
    base = each.accuracy[:, 0]
    gains = _diagonal(each) - base
    return [
        _estimate("mean of the start model", base.mean(1)),
        _estimate("mean of the diagonal", _diagonal(each).mean(1)),
        _estimate("mean off the diagonal", _off_diagonal(each).mean(1)),
        _estimate("diagonal minus start model, mean", gains.mean(1)),
        *(_estimate(f"diagonal minus start model, {name}", gains[:, c]) for c, name in enumerate(NAMES[axis])),
    ]


def _differences(measured: dict[tuple[Mode, str], _Measured], mode: Mode, method: str) -> list[Estimate]:
    """Return the differences of this matrix from all others of its axis."""
    this = measured[mode, method]
    estimates = []
    for (other_mode, other_method), other in measured.items():
        if other is not this:
            name = f"minus {other_method}, {other_mode}"
            diagonal, others = _diagonal(this) - _diagonal(other), _off_diagonal(this) - _off_diagonal(other)
            estimates.append(_estimate(f"diagonal {name}", diagonal.mean(1)))
            estimates.append(_estimate(f"off the diagonal {name}", others.mean(1)))
    return estimates


def _diagonal(each: _Measured) -> NDArray[np.float64]:
    """Return [1 + R, C]: each trained model on questions of the kind that it was trained on."""
    return np.diagonal(each.accuracy[:, 1:], axis1=1, axis2=2)


def _off_diagonal(each: _Measured) -> NDArray[np.float64]:
    """Return [1 + R, C * (C - 1)]: the trained models on all other questions."""
    trained = each.accuracy[:, 1:]
    return trained[:, ~np.eye(trained.shape[1], dtype=bool)]


def _estimate(name: str, values: NDArray[np.float64]) -> Estimate:
    """Return the estimate of `values` [1 + R]: the value of the data, which comes first, and that of each replicate."""
    drawn = values[1:]
    return Estimate(name, float(values[0]), interval(drawn[~np.isnan(drawn)]))


def _page(matrix: Matrix) -> str:
    """Return a matrix as Markdown: accuracies in per cent with their intervals, then the means."""
    columns = NAMES[matrix.axis]
    cells = {(cell.row, cell.column): cell for cell in matrix.cells}
    lines = [
        f"## {matrix.method}, {matrix.mode}, by {matrix.axis.replace('_', ' ')}",
        "",
        "Rows: what a model was trained on; columns: what it was tested on. Accuracy in per cent, 95 % interval "
        f"(bootstrap over images). Not shown to be better {MARKS}.",
        "",
        "| trained on | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in matrix.row_names:
        lines.append(f"| {row} | " + " | ".join(_with_interval(cells[row, column]) for column in columns) + " |")
    first = [cells[BASE, column] for column in columns]
    lines.append("| *chance* | " + " | ".join(f"{100 * cell.chance:.0f}" for cell in first) + " |")
    priors = [cells[column, column].blind_prior for column in columns]
    lines.append("| *blind prior of the column* | " + " | ".join(f"{100 * prior:.0f}" for prior in priors) + " |")
    lines += ["", "| in points | | 95 % |", "|---|---|---|"]
    for each in matrix.estimates:
        low, high = each.interval
        lines.append(f"| {each.name} | {100 * each.value:.1f} | {100 * low:.1f} to {100 * high:.1f} |")
    return "\n".join(lines)


def _with_interval(cell: Cell) -> str:
    low, high = cell.interval
    return f"{shown(cell)} [{100 * low:.0f}, {100 * high:.0f}]"
