"""Intervals and tests against values derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medr1_ray.evaluation.uncertainty import (
    accuracy_interval,
    bootstrap_means,
    difference_interval,
    interval,
    mcnemar,
)


def test_images_are_drawn_with_all_of_their_questions() -> None:
    # Image a: three right answers; image b: one wrong. Drawn twice each: aa -> 1, bb -> 0, ab -> 3/4.
    values = np.array([[1.0], [1.0], [1.0], [0.0]])
    means = bootstrap_means(values, ["a", "a", "a", "b"], replicates=4000)
    found, times = np.unique(means, return_counts=True)
    assert found.tolist() == [0.0, 0.75, 1.0]
    assert times / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_measures_of_a_replicate_are_of_the_same_images() -> None:
    values = np.random.default_rng(0).integers(0, 2, (50, 1)).repeat(2, 1).astype(float)
    means = bootstrap_means(values, [str(i) for i in range(50)])
    assert interval(means[:, 0] - means[:, 1]) == (0.0, 0.0)


def test_the_interval_of_many_independent_questions_is_that_of_the_normal_approximation() -> None:
    correct = np.r_[np.ones(800), np.zeros(200)]
    means = bootstrap_means(correct[:, None], [str(i) for i in range(1000)], replicates=4000)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert interval(means[:, 0]) == pytest.approx((0.8 - half, 0.8 + half), abs=0.003)


def test_few_images_that_agree_leave_room() -> None:
    same = np.ones((20, 1))
    means = bootstrap_means(same, [str(i // 2) for i in range(20)])
    # Ten images, all right: with p = 0.6915, ten of ten have the probability 0.025.
    assert accuracy_interval(same[:, 0], means[:, 0], 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert accuracy_interval(1 - same[:, 0], 1 - means[:, 0], 10) == pytest.approx((0.0, 0.3085), abs=1e-4)


def test_fewer_than_ten_images_say_nothing_of_what_differs_among_them() -> None:
    values = np.array([1.0, 0.0] * 9)
    means = bootstrap_means(values[:, None], [str(i // 2) for i in range(18)])[:, 0]
    assert (accuracy_interval(values, means, 9), difference_interval(means, 9)) == ((0.0, 1.0), (-1.0, 1.0))
    assert difference_interval(means, 10) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (1, 6, 2 * (1 + 7) / 128),
        (6, 1, 2 * (1 + 7) / 128),
        (0, 3, 0.25),
        (0, 0, 1.0),
        (5, 5, 1.0),
        (4, 5, 1.0),
    ],
)
def test_mcnemar_counts_coin_tosses(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p)


def test_mcnemar_of_many_questions() -> None:
    assert 0 <= mcnemar(0, 5000) < 1e-300
    # In 20,000 tosses, a deviation of 141 is two standard deviations.
    assert mcnemar(10_141, 9_859) == pytest.approx(0.0466, abs=0.001)
