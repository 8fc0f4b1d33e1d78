"""Evaluation of all models of a matrix experiment on the same test questions, one after another on the same engines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.helpers.matrix.settings import (
    NAMES,
    Axis,
    MatrixSettings,
    Trained,
    column_of,
    mode_config,
    rows,
    run_directory,
)
from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.data.dataset import Dataset, open_dataset, stratified_sample
from medr1_ray.data.encoding import PromptEncoder
from medr1_ray.data.image_digest import images_digest
from medr1_ray.evaluation.folder import EvaluationFolder, questions_digest
from medr1_ray.evaluation.passes import BLINDED, IMAGE, Pass, letter_passes
from medr1_ray.evaluation.settings import without_learner
from medr1_ray.model.checkpoint_files import checkpoint_digest, resolve_checkpoint
from medr1_ray.types import Mode, Question

BLANK = BLINDED[0]


def evaluate_all(settings: MatrixSettings) -> None:
    """Evaluate every model that is not finished on its matrix's test questions, with the image and with a blank one.

    Raises:
        ValueError: an evaluation, finished or not, is of other weights, questions or images.
    """
    models = list(_models(settings))
    configs = {mode: mode_config(settings, mode) for mode in settings.axes}
    # One set of engines serves all modes, so it must fit the longest completions.
    longest = max(configs.values(), key=lambda config: config.rollout.max_tokens)
    questions = {axis: held_out_questions(settings, axis) for _, axis, _, _ in models}
    # Once for all models: they may be thousands of files.
    images = {axis: images_digest(asked, longest.data.image_timeout_seconds) for axis, asked in questions.items()}
    folders = {
        slug: EvaluationFolder(
            _folder(settings, slug),
            _identity(configs[mode], checkpoint, questions[axis]) | {"images": images[axis]},
            questions[axis],
        )
        for slug, axis, mode, checkpoint in models
    }
    todo = [entry for entry in models if not (folders[entry[0]].path / "done").exists()]
    if not todo:
        return
    from medr1_ray.evaluation.inference import open_inference

    passes = {(axis, mode): _passes(configs[mode], questions[axis]) for _, axis, mode, _ in todo}
    with open_inference(without_learner(longest, settings.out)) as inference:
        for slug, axis, mode, checkpoint in tqdm(todo, desc="evaluating", unit="model"):
            inference.load(checkpoint)
            for each in passes[axis, mode]:
                folders[slug].run(inference.pool, each)
            (folders[slug].path / "done").touch()


def evaluation_folder(settings: MatrixSettings, row: Trained | None, axis: Axis, mode: Mode) -> Path:
    """Return the folder of the answers of a row's model, or of the start model if `row` is None."""
    return _folder(settings, row.slug if row else _base_slug(axis, mode))


def held_out_questions(settings: MatrixSettings, axis: Axis) -> tuple[Question, ...]:
    """Return `questions_per_column` held-out questions of each column, spread over the types or modalities within it.

    Raises:
        ValueError: a column has no held-out question.
    """
    by_column: dict[str, list[Question]] = defaultdict(list)
    dataset = everything(settings)
    for question in dataset.evaluation:
        by_column[column_of(question, axis)].append(question)
    missing = [name for name in NAMES[axis] if not by_column[name]]
    if missing:
        raise ValueError(f"{axis} {missing[0]!r} has no held-out question, so its column would be empty; use more data")
    return tuple(
        question
        for name in NAMES[axis]
        for question in stratified_sample(tuple(by_column[name]), settings.questions_per_column, 0)
    )


def everything(settings: MatrixSettings) -> Dataset:
    """Return all questions of the experiment's data, split as in its runs."""
    return _read(settings.configs)


@cache
def _read(configs: tuple[Path, ...]) -> Dataset:
    data = load_config(configs).data
    # A number that no data reach: all held-out questions, not only a run's sample of them.
    return open_dataset(data.model_copy(update={"eval_questions": 10**9}))


def _models(settings: MatrixSettings) -> Iterator[tuple[str, Axis, Mode, Path]]:
    for mode, axes in settings.axes.items():
        start = resolve_checkpoint(mode_config(settings, mode).model.path)
        for axis in axes:
            yield _base_slug(axis, mode), axis, mode, start
    for row in rows(settings):
        yield row.slug, row.axis, row.mode, resolve_checkpoint(str(run_directory(settings, row)))


def _passes(config: Config, questions: Sequence[Question]) -> list[Pass]:
    data, rollout = config.data, config.rollout
    encoder = PromptEncoder.of(config)
    passes = letter_passes(encoder, config.mode, rollout.max_tokens, questions, data.seed)
    return [each for each in passes if each.name in (IMAGE, BLANK)]


def _identity(config: Config, checkpoint: Path, questions: Sequence[Question]) -> dict[str, object]:
    return {
        "checkpoint": str(checkpoint),
        # Trained again it has the same path.
        "weights": checkpoint_digest(checkpoint),
        "mode": config.mode,
        "max_tokens": config.rollout.max_tokens,
        "questions": questions_digest(questions),
    }


def _base_slug(axis: Axis, mode: Mode) -> str:
    return f"{axis}-{mode}-base"


def _folder(settings: MatrixSettings, slug: str) -> Path:
    return settings.out / "evaluations" / slug
