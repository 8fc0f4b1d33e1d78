"""Steps whose gradient was not finite are counted, and too many in a row end the run."""

from __future__ import annotations

import math

import pytest

from medr1_ray.config import LearnerSettings
from medr1_ray.learner.messages import OptimizerStep
from medr1_ray.run.skipped_steps import SkippedSteps


def _steps(*norms: float) -> list[OptimizerStep]:
    return [OptimizerStep(0.5, norm, 1e-4) for norm in norms]


def test_steps_in_a_row_count_across_updates() -> None:
    steps = SkippedSteps(LearnerSettings(max_skipped_steps=3, learning_rate=1e-3), total=5)
    assert steps.count(1, _steps(1.0, math.inf), print) == 1
    steps.require_few()
    assert steps.count(1, _steps(math.nan), print) == 1
    steps.require_few()
    assert steps.count(1, _steps(math.inf), print) == 1
    assert steps.total == 8
    said = r"gradients of 3 optimizer steps in a row .*max_skipped_steps=3.*learner\.learning_rate \(now 0\.001\)"
    with pytest.raises(RuntimeError, match=said):
        steps.require_few()


def test_steps_in_a_row_count_within_an_update_too() -> None:
    """Of mini-batches the last one alone may go well, update after update."""
    steps, said = SkippedSteps(LearnerSettings(max_skipped_steps=3), total=0), []
    steps.count(4, _steps(math.nan, math.nan, math.nan, 1.0), said.append)
    assert said == [
        "step 4: the gradient was not finite in 3 of the last 4 optimizer steps, nothing was learned from it; 3 so far"
    ]
    with pytest.raises(RuntimeError, match="3 optimizer steps in a row"):
        steps.require_few()


def test_a_step_that_was_taken_ends_the_series() -> None:
    steps = SkippedSteps(LearnerSettings(max_skipped_steps=2), total=0)
    steps.count(1, _steps(math.nan, 1.0, math.nan), print)
    steps.require_few()
    assert steps.total == 2
