"""Evaluating a checkpoint: its accuracy compared with chance, the blind prior, and passes that hide the image.

Runs on rollout actors. Answers are written as they arrive, and repeating an interrupted call resumes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medr1_ray.base.json_files import read_mapping
from medr1_ray.base.signs_of_life import still
from medr1_ray.config import Config
from medr1_ray.data.dataset import Dataset, open_dataset, stratified_sample
from medr1_ray.data.encoding import PromptEncoder
from medr1_ray.data.image_digest import images_digest
from medr1_ray.data.prompt_templates import MEDR1_WORDING
from medr1_ray.data.readers.rows import dropped_by_reason
from medr1_ray.evaluation.folder import (
    SETTINGS,
    Answers,
    EvaluationFolder,
    questions_digest,
    read_answers,
    require_same,
)
from medr1_ray.evaluation.passes import (
    IMAGE,
    Pass,
    Sampled,
    letter_passes,
    likelihood_pass,
    text_pass,
)
from medr1_ray.evaluation.report import Against, Report, compare, make_report
from medr1_ray.evaluation.report_page import report_page
from medr1_ray.evaluation.settings import model_name, part_of
from medr1_ray.model.checkpoint_files import checkpoint_digest
from medr1_ray.model.folder.check import check_model
from medr1_ray.types import Question, Sampling

TEXT_TOKENS = 64
"""Longest answer in the `text` scoring, where the model writes the text of an option."""

_THE_SAME = ("questions", "images")
"""Of what identifies an evaluation, the part that two models' results must share to be compared."""


@dataclass(frozen=True)
class Plan:
    """What to evaluate, in addition to the letter passes.

    `scorings` are among `SCORINGS`; `samples` is the number of answers sampled per question, or 0; `questions` limits
    the number of questions; `against` is an earlier result to compare with.
    """

    split: str
    scorings: tuple[str, ...] = ("letter",)
    samples: int = 0
    questions: int | None = None
    against: Path | None = None


def evaluate(config: Config, plan: Plan) -> Report:
    """Evaluate `config.model` into `config.run.dir`, resuming an interrupted evaluation there.

    Raises:
        ValueError: the data, the split, the folder or the result to compare with is not usable.
        RuntimeError: an engine failed; the answers so far are kept.
    """
    other = None if plan.against is None else read_answers(require_result(plan.against))
    asked = _how_asked(config, plan)
    require_same(config.run.dir, asked)  # before anything that takes long is read
    _say(f"reading {config.data.format} data below {config.data.root}")
    dataset = _read(config, plan)
    # After the data, because of what it imports.
    check_model(config)
    _say(dataset.description)
    with still(f"reading the images, and the weights of {config.model.folder}, which identify the evaluation"):
        of_what = _what_is_asked(config, dataset)
    if plan.against:
        _require_same_questions(plan.against, of_what)
    identity = asked | of_what
    folder = EvaluationFolder(config.run.dir, identity, dataset.evaluation)
    passes = _passes(config, plan, dataset.evaluation)
    # A complete evaluation only rewrites its report, without starting engines.
    if any(len(_all_ids(folder.answers(each.name))) < len(folder.questions) for each in passes):
        from medr1_ray.evaluation.inference import open_inference

        with open_inference(_with_room(config, plan)) as inference:
            inference.load(config.model.folder)
            for each in passes:
                folder.run(inference.pool, each)
    return _write_report(config, plan, folder, dataset, [each.name for each in passes], other)


def _read(config: Config, plan: Plan) -> Dataset:
    """Return the data, with the questions to ask as its `evaluation`."""
    # A training evaluates on a sample; here the default is all questions.
    on_training = part_of(config, plan.split) == "train"
    settings = config.data.model_copy(update={"eval_questions": plan.questions or sys.maxsize})
    dataset = open_dataset(settings, train_needed=on_training)
    if not on_training:
        return dataset
    limit = plan.questions or len(dataset.train)
    return replace(dataset, evaluation=stratified_sample(dataset.train, limit, config.data.seed))


def _passes(config: Config, plan: Plan, questions: Sequence[Question]) -> list[Pass]:
    from transformers import AutoTokenizer

    path = str(config.model.folder)
    encoder = PromptEncoder.of(config)
    passes = letter_passes(encoder, config.mode, config.rollout.max_tokens, questions, config.data.seed)
    if "text" in plan.scorings:
        passes.append(text_pass(encoder, TEXT_TOKENS))
    if "likelihood" in plan.scorings:
        tokenizer = AutoTokenizer.from_pretrained(path)
        passes.append(likelihood_pass(encoder, lambda text: tokenizer.encode(text, add_special_tokens=False)))
    if plan.samples:
        # No seed: on a CPU vLLM 0.32 draws other tokens where a prompt is scheduled in two pieces.
        sampling = Sampling(plan.samples, config.rollout.max_tokens, config.rollout.temperature)
        passes.append(Sampled(_samples_name(plan), passes[0].ask, sampling))
    return passes


def _with_room(config: Config, plan: Plan) -> Config:
    """Return the settings with room for the longest completion that a pass may request."""
    tokens = max(config.rollout.max_tokens, TEXT_TOKENS if "text" in plan.scorings else 0)
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_tokens": tokens})})


def _write_report(
    config: Config,
    plan: Plan,
    folder: EvaluationFolder,
    dataset: Dataset,
    passes: Sequence[str],
    other: Answers | None,
) -> Report:
    """Write `report.json`, `report.md` and, if there are samples, `pass_rates.jsonl`; return the report."""
    samples_name = _samples_name(plan)
    answers = {name: folder.answers(name) for name in passes if name != samples_name}
    samples = folder.answers(samples_name).rows if plan.samples else {}
    left_out = {id_: reason for found in answers.values() for id_, reason in found.left_out.items()}
    against: Against | None = None
    if other is not None:
        against = compare(folder.questions, answers[IMAGE].rows, str(plan.against), other.rows)
    report = make_report(
        model=model_name(config.model.folder),
        mode=config.mode,
        split=plan.split,
        questions=folder.questions,
        train=dataset.train,
        rows_dropped=dropped_by_reason(dataset.dropped),
        rows={name: found.rows for name, found in answers.items()},
        left_out=left_out,
        samples=samples,
        against=against,
    )
    (folder.path / "report.json").write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False))
    (folder.path / "report.md").write_text(report_page(report))
    if samples:
        rates = [json.dumps(row, ensure_ascii=False) + "\n" for row in samples.values()]
        (folder.path / "pass_rates.jsonl").write_text("".join(rates), encoding="utf-8")
    return report


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _what_is_asked(config: Config, dataset: Dataset) -> dict[str, object]:
    """Return of model and questions what must be equal for answers to belong to the same evaluation."""
    return {
        "weights": checkpoint_digest(config.model.folder),
        "questions": questions_digest(dataset.evaluation),
        "images": images_digest(dataset.evaluation, config.data.image_timeout_seconds),
        "training questions": questions_digest(dataset.train),
    }


def _how_asked(config: Config, plan: Plan) -> dict[str, object]:
    """Return of the settings what must be equal for answers to belong to the same evaluation."""
    wording, by_default = ([each.system, each.templates[config.mode]] for each in (config.prompt, MEDR1_WORDING))
    return {
        "mode": config.mode,
        # Absent in the folders of before there was a setting.
        "system text and template": None if wording == by_default else wording,
        "split": plan.split,
        "image_size": config.data.image_size,
        "image_fit": config.data.image_fit,
        "max_tokens": config.rollout.max_tokens,
        "max_prompt_tokens": config.rollout.max_prompt_tokens,
        "temperature of samples": config.rollout.temperature,
        "seed": config.data.seed,
    }


def require_result(path: Path) -> Path:
    """Return the folder of an earlier result, to compare with. Raises ValueError if it is none of this version."""
    folder = path.parent if path.is_file() else path
    if not ((folder / "answers" / f"{IMAGE}.jsonl").exists() and (folder / SETTINGS).exists()):
        raise ValueError(f"--against {path} is not an evaluation: give the folder of one, or its report.json")
    _what_was_asked(folder)
    return folder


def _what_was_asked(folder: Path) -> dict[str, object]:
    advice = "--against needs a result of this version: evaluate that model again, into another --out"
    return read_mapping(folder / SETTINGS, advice, _THE_SAME)


def _require_same_questions(against: Path, of_what: dict[str, object]) -> None:
    """Raise ValueError where an earlier result is of other questions or images, though their ids may be the same."""
    before = _what_was_asked(require_result(against))
    for key in _THE_SAME:
        if before[key] != of_what[key]:
            raise ValueError(
                f"--against {against} is an evaluation with {key} {before[key]!r}, this one has {of_what[key]!r}; "
                "give a result of the same questions, with the same images"
            )


def _all_ids(answers: Answers) -> set[str]:
    return answers.rows.keys() | answers.left_out.keys()


def _samples_name(plan: Plan) -> str:
    return f"samples_{plan.samples}"
