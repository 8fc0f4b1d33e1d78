"""Expected values are derived by hand, in the comments."""

import numpy as np
import pytest

from medr1_ray.rewards.advantages import group_advantages


def test_with_std() -> None:
    # mean 1/2; squares 4 * 1/4 = 1; unbiased variance 1/3; std 0.577350; 0.5 / 0.577450 = 0.865875.
    advantages = group_advantages(np.float32([0, 0, 1, 1]), std=True)
    np.testing.assert_allclose(advantages, [-0.865875, -0.865875, 0.865875, 0.865875], atol=1e-6)
    assert advantages.dtype == np.float32


def test_without_std() -> None:
    np.testing.assert_allclose(group_advantages(np.float32([0, 0, 1]), std=False), [-1 / 3, -1 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(group_advantages(np.float32([2, 0, 1]), std=False), [1, -1, 0])


@pytest.mark.parametrize("shift", [0, 5])
def test_only_differences_within_the_group_count(shift: int) -> None:
    # deviations 1, unbiased std sqrt(2): 1 / 1.414314 = 0.707057.
    advantages = group_advantages(np.float32([0, 2]) + shift, std=True)
    np.testing.assert_allclose(advantages, [-0.707057, 0.707057], atol=1e-6)


def test_equal_rewards_give_exactly_zero_where_their_float_mean_differs() -> None:
    size = next(n for n in range(2, 100) if np.full(n, 0.1).mean() != 0.1)
    rewards = np.full(size, 0.1)
    assert np.abs(rewards - rewards.mean()).max() > 0
    assert (group_advantages(rewards, std=True) == 0).all()  # type: ignore[arg-type]
    assert (group_advantages(np.float32([0.1]), std=True) == 0).all(), "one answer of an evaluation"


def test_nearly_equal_rewards_are_not_equal() -> None:
    # mean 5e-7; deviations 5e-7; unbiased std 7.07e-7, next to which 1e-4 dominates: 5e-7 / 1.007e-4.
    advantages = group_advantages(np.float32([0, 1e-6]), std=True)
    np.testing.assert_allclose(advantages, [-4.965e-3, 4.965e-3], rtol=1e-3)
