import pytest

from medr1_ray.config import LearnerSettings
from medr1_ray.learner.schedule import learning_rate


def rates(steps, **settings):
    return [
        learning_rate(LearnerSettings(learning_rate=1.0, **settings), step, steps) for step in range(steps)
    ]


def test_constant():
    assert rates(3, schedule="constant") == [1.0, 1.0, 1.0]


def test_linear_starts_full_and_would_reach_zero_after_the_last_step():
    assert rates(4, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_cosine():
    # (1 + cos(pi k / 4)) / 2 for k = 0, 1, 2, 3.
    assert rates(4, schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_warmup_ends_at_the_full_rate_and_the_rest_falls_from_there():
    assert rates(6, schedule="linear", warmup_steps=2) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_a_warmup_below_one_is_a_fraction_of_the_steps():
    # ceil(0.25 * 6) = 2.
    assert rates(6, schedule="linear", warmup_steps=0.25) == rates(6, schedule="linear", warmup_steps=2)


def test_longer_than_planned_stays_at_the_end():
    assert learning_rate(LearnerSettings(schedule="linear"), 7, steps=5) == 0.0
