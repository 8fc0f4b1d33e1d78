"""Optimizer steps that changed nothing, because their gradient was not finite: counted, and an end to too many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medr1_ray.config import LearnerSettings
from medr1_ray.learner.messages import OptimizerStep


class SkippedSteps:
    """`total` is their number in the run so far, its resumptions included."""

    def __init__(self, learner: LearnerSettings, total: int) -> None:
        self._learner = learner
        self._in_a_row = 0
        self._most_in_a_row = 0
        self.total = total

    def count(self, step: int, taken: Sequence[OptimizerStep], say: Callable[[str], None]) -> int:
        """Take note of those that brought the run to this step; returns how many were skipped, which `say` is told."""
        for each in taken:
            self._in_a_row = self._in_a_row + 1 if each.skipped else 0
            self._most_in_a_row = max(self._most_in_a_row, self._in_a_row)
            self.total += each.skipped
        skipped = sum(each.skipped for each in taken)
        if skipped:
            of = "" if len(taken) == 1 else f" in {skipped} of the last {len(taken)} optimizer steps"
            say(f"step {step}: the gradient was not finite{of}, nothing was learned from it; {self.total} so far")
        return skipped

    def require_few(self) -> None:
        """Raise RuntimeError where `learner.max_skipped_steps` steps in a row were skipped."""
        limit, rate, norm = (
            self._learner.max_skipped_steps,
            self._learner.learning_rate,
            self._learner.max_grad_norm,
        )
        if self._most_in_a_row >= limit:
            raise RuntimeError(
                f"the gradients of {self._most_in_a_row} optimizer steps in a row were not finite "
                f"(learner.max_skipped_steps={limit}), and changed no weights. Go on from the "
                f"last checkpoint with --resume and a smaller learner.learning_rate (now {rate:g}) or "
                f"learner.max_grad_norm (now {norm:g}); what these steps were to learn from is in recorded/"
            )
