"""Greedy evaluation on held-out questions during a training, and its files in the run directory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medr1_ray.base.append_log import NO_ROOM
from medr1_ray.base.atomic_files import write_text
from medr1_ray.base.json_files import read_mapping
from medr1_ray.types import Group, Prompt, Sampling

if TYPE_CHECKING:
    from medr1_ray.pool.groups import RolloutPool


_DISCARDED = "discarded-"
BEFORE_IS_GONE = (
    "there is no evaluations/before.json of the start model, and a resumed run no longer has its weights; bring the "
    "file back for the summary, or evaluate model.path by itself (python -m medr1_ray.evaluate)"
)


@dataclass(frozen=True)
class Evaluation:
    """Fractions in [0, 1] over `n` questions; modalities and question types have their canonical names."""

    accuracy: float
    format: float
    n: int
    by_modality: dict[str, float]
    by_question_type: dict[str, float]


def evaluate(
    pool: RolloutPool, prompts: Iterable[Prompt], max_tokens: int
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

    They are kept when the run is resumed; a later evaluation of the same name replaces the earlier one. One for which
    the disk has no room is kept in memory, and `say` is told.

    Args:
        folder: `<run>/evaluations`, created where it is missing.
        say: takes a line for the operator.
        step: steps done so far; 0 for a new run. Evaluations of later steps are of weights that the run no longer has,
            and move to `discarded-<n>-<name>`.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], step: int = 0) -> None:
        self._folder = folder
        self._say = say
        self._unwritten: dict[str, tuple[int, Evaluation]] = {}
        folder.mkdir(exist_ok=True)
        self._discard_after(step)

    def add(self, name: str, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        """Write one evaluation."""
        answers = [json.dumps(_answer(group)) + "\n" for group in groups]
        try:
            write_text(self._folder / f"{name}.jsonl", "".join(answers))
            # Last, because `find` takes this file as the sign that the evaluation has been done.
            write_text(self._folder / f"{name}.json", json.dumps({"step": step, **asdict(evaluation)}, indent=1))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._unwritten[name] = step, evaluation
            self._say(f"NOT WRITTEN: evaluation {name}: {error.strerror}; the run goes on without its files")

    def find(self, name: str, step: int | None = None) -> Evaluation | None:
        """Return the evaluation of that name, and of that step where one is given; None where there is none."""
        path = self._folder / f"{name}.json"
        if name in self._unwritten:
            at, evaluation = self._unwritten[name]
        elif path.exists():
            names = [field.name for field in fields(Evaluation)]
            found = read_mapping(path, "bring a whole one back, or move it away", ["step", *names])
            at, evaluation = found["step"], Evaluation(**{name: found[name] for name in names})
        else:
            return None
        return evaluation if step in (None, at) else None


    def before(self) -> Evaluation | None:
        """Return the evaluation of the start model, None where it is no longer there."""
        return self.find("before", 0)

    def after_step(self, step: int) -> Evaluation | None:
        """Return the evaluation of the weights after this step, None where there is none."""
        # Where it was the last one, of a run that goes on with more of them, it has another name.
        return self.find(f"step-{step}", step) or self.find("after", step)

    def _discard_after(self, step: int) -> None:
        for path in sorted(self._folder.glob("*.json")):
            if path.name.startswith(_DISCARDED) or _step_in(path) <= step:
                continue
            n = next(n for n in count(1) if not path.with_name(f"{_DISCARDED}{n}-{path.name}").exists())
            # The file that `find` looks for first: what an interruption leaves of the other is written over.
            for file in (path, path.with_suffix(".jsonl")):
                if file.exists():
                    file.rename(file.with_name(f"{_DISCARDED}{n}-{file.name}"))


def _step_in(path: Path) -> float:
    try:
        return float(read_mapping(path, "", ["step"])["step"])
    except (OSError, ValueError, TypeError):
        return 0.0  # none of ours, or damaged: `find` says so where it is asked for


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
