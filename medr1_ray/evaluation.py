"""Greedy evaluation on held-out questions, with the image, with a blank one and with somebody else's."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medr1_ray.types import Group, Prompt, Sampling

if TYPE_CHECKING:
    from medr1_ray.pool import RolloutPool


@dataclass(frozen=True)
class Evaluation:
    """Fractions in [0, 1] over `n` questions; names are the canonical ones."""

    accuracy: float
    format: float
    n: int
    by_modality: dict[str, float]
    by_question_type: dict[str, float]


def evaluate(
    pool: RolloutPool, prompts: Sequence[Prompt], max_tokens: int
) -> tuple[Evaluation, list[Group]]:
    """One greedy answer to each prompt, graded by the default parser whatever the reward functions are."""
    groups = pool.run(prompts, Sampling(group_size=1, max_tokens=max_tokens, temperature=0.0))
    evaluation = Evaluation(
        accuracy=_accuracy(groups),
        format=float(np.mean([group.rewards.well_formed[0] for group in groups])),
        n=len(groups),
        by_modality=_accuracy_by((group.prompt.question.modality, group) for group in groups),
        by_question_type=_accuracy_by((group.prompt.question.question_type, group) for group in groups),
    )
    return evaluation, groups


def with_blank_images(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts, each with a black image of the same size."""
    return [replace(prompt, image=np.zeros_like(prompt.image)) for prompt in prompts]


def with_shuffled_images(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The same prompts, each with the image of another one, of a different file (`other_images`)."""
    others = other_images([prompt.question.image_path for prompt in prompts], seed)
    return [
        replace(prompt, image=prompts[other].image) for prompt, other in zip(prompts, others, strict=True)
    ]


def other_images(files: Sequence[str], seed: int) -> list[int]:
    """For each question, by its image's file, the index of another question that is about a different file.

    Each image is used as often as before, so that only the link between image and question is lost. Raises
    ValueError when more than half of the questions share one image, which leaves no such assignment.
    """
    distinct = sorted(set(files))
    rank = dict(zip(distinct, np.random.default_rng(seed).permutation(len(distinct)), strict=True))
    # Laid in blocks of equal files, in random order, a shift by the largest block meets no block a second time.
    order = sorted(range(len(files)), key=lambda i: rank[files[i]])
    shift = max(Counter(files).values(), default=0)
    if 2 * shift > len(files):
        raise ValueError(
            f"{shift} of {len(files)} evaluation questions are about one image, so that images cannot be shuffled "
            "between questions; raise data.eval_questions or data.eval_fraction"
        )
    others = [0] * len(files)
    for place, source in zip(order, order[shift:] + order[:shift], strict=True):
        others[place] = source
    return others


def _accuracy(groups: Iterable[Group]) -> float:
    return float(np.mean([group.rewards.correct[0] for group in groups]))


def _accuracy_by(named: Iterable[tuple[str, Group]]) -> dict[str, float]:
    by_name: defaultdict[str, list[Group]] = defaultdict(list)
    for name, group in named:
        by_name[name].append(group)
    return {name: _accuracy(groups) for name, groups in sorted(by_name.items())}


class EvaluationLog:
    """The evaluations of a run: `<name>.json` with the fractions, `<name>.jsonl` with each question and its answer.

    Kept when the run is resumed; a later evaluation of the same name replaces the earlier one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def add(self, name: str, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        """Write one evaluation."""
        answers = [json.dumps(_answer(group)) + "\n" for group in groups]
        (self._folder / f"{name}.jsonl").write_text("".join(answers))
        (self._folder / f"{name}.json").write_text(json.dumps({"step": step, **asdict(evaluation)}, indent=1))

    def find(self, name: str) -> Evaluation | None:
        """The evaluation of that name, if it was made."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
        del fields["step"]
        return Evaluation(**fields)


def _answer(group: Group) -> dict[str, object]:
    question = group.prompt.question
    return {
        "question": asdict(question),
        "gold": question.gold_letter,
        "completion": group.completions.texts[0],
        "answer": group.rewards.answers[0],
        "correct": bool(group.rewards.correct[0]),
        "well_formed": bool(group.rewards.well_formed[0]),
    }
