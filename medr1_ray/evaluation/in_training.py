"""Greedy evaluation on held-out questions during a training, and its files in the run directory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medr1_ray.base.atomic_files import write_text
from medr1_ray.base.json_files import read_mapping
from medr1_ray.types import Group, Prompt, Sampling

if TYPE_CHECKING:
    from medr1_ray.pool.groups import RolloutPool


@dataclass(frozen=True)
class Evaluation:
    """Fractions in [0, 1] over `n` questions; modalities and question types have their canonical names."""

    accuracy: float
    format: float
    n: int
    by_modality: dict[str, float]
    by_question_type: dict[str, float]


def evaluate(
    pool: RolloutPool, prompts: Sequence[Prompt], max_tokens: int
) -> tuple[Evaluation, list[Group]]:
    """Evaluate one greedy answer per prompt, graded by the default parser whatever the reward functions are."""
    groups = pool.run(prompts, Sampling(group_size=1, max_tokens=max_tokens, temperature=0.0))
    evaluation = Evaluation(
        accuracy=_accuracy(groups),
        format=float(np.mean([group.rewards.well_formed[0] for group in groups])),
        n=len(groups),
        by_modality=_accuracy_by((group.prompt.question.modality, group) for group in groups),
        by_question_type=_accuracy_by((group.prompt.question.question_type, group) for group in groups),
    )
    return evaluation, groups


def _accuracy(groups: Iterable[Group]) -> float:
    return float(np.mean([group.rewards.correct[0] for group in groups]))


def _accuracy_by(named: Iterable[tuple[str, Group]]) -> dict[str, float]:
    by_name: defaultdict[str, list[Group]] = defaultdict(list)
    for name, group in named:
        by_name[name].append(group)
    return {name: _accuracy(groups) for name, groups in sorted(by_name.items())}


class EvaluationLog:
    """The evaluations of a run: `<name>.json` with the fractions, `<name>.jsonl` with each question and its answer.

    They are kept when the run is resumed; a later evaluation of the same name replaces the earlier one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def add(self, name: str, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        """Write one evaluation."""
        answers = [json.dumps(_answer(group)) + "\n" for group in groups]
        (self._folder / f"{name}.jsonl").write_text("".join(answers))
        # Last, because `find` takes this file as the sign that the evaluation has been done.
        write_text(self._folder / f"{name}.json", json.dumps({"step": step, **asdict(evaluation)}, indent=1))

    def find(self, name: str) -> Evaluation | None:
        """Return the evaluation of that name, or None."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        names = [field.name for field in fields(Evaluation)]
        found = read_mapping(path, "move it away to evaluate again", names)
        return Evaluation(**{name: found[name] for name in names})


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
