"""What is shared between what the learner knows and what an engine samples, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from medr1_ray.learner.messages import GroupLogprobs
from medr1_ray.run.parity.known_tokens import KnownTokens, Stale
from medr1_ray.types import Completions, Span


def a_group(
    *completions: Sequence[int], logprobs: Sequence[float] = (), versions: Sequence[int] | int = 0
) -> Completions:
    """A group of completions with these token ids."""
    size = sum(map(len, completions))
    return Completions(
        "p",
        "rollout-0",
        np.array([token for each in completions for token in each], np.int32),
        np.array(logprobs or [-1.0] * size, np.float32),
        np.broadcast_to(np.array(versions, np.int32), size),
        np.array([len(each) for each in completions], np.int32),
        np.zeros(len(completions), np.bool_),
        ("",) * len(completions),
        1,
        Span("rollout-0", "rollout", 0.0, 1.0),
    )


def learned(*logprobs: float) -> GroupLogprobs:
    return GroupLogprobs(np.array(logprobs, np.float32), 1)


def test_of_each_completion_the_tokens_before_the_first_difference_are_compared() -> None:
    known = KnownTokens([a_group([1, 2, 3], [4, 5]), a_group([6, 7, 8])])
    known.add(0, [learned(-1, -2, -3, -4, -5), learned(-6, -7, -8)])
    # Shared are 1, 2 of the first completion; nothing of the second, whose later 5 follows on another token; 6, 7, 8,
    # after which the engine's goes on.
    sampled = [
        a_group([1, 2, 9, 9], [9, 5], logprobs=[-1.5, -2, 0, 0, 0, 0]),
        a_group([6, 7, 8, 9], logprobs=[-6, -7, -9, 0]),
    ]
    gap = known.compare(sampled, rounding=0).gap
    assert (gap.mean, gap.max, gap.tokens) == (pytest.approx(1.5 / 5), 1.0, 5)


def test_a_token_is_compared_with_the_scores_of_its_own_version_alone() -> None:
    known = KnownTokens([a_group([1, 2, 3, 4])])
    sampled = [a_group([1, 2, 3, 4], logprobs=[-1, -1, -2.5, -9], versions=[3, 3, 4, 5])]
    known.add(3, [learned(-1, -1, -1, -1)])
    assert known.compare(sampled, rounding=0).gap.tokens == 2
    known.add(4, [learned(-2, -2, -2, -2)])
    # What is of version 5 cannot be compared yet.
    gap = known.compare(sampled, rounding=0).gap
    assert (gap.mean, gap.tokens) == (pytest.approx(0.5 / 3), 3)


def test_scores_of_long_ago_are_forgotten() -> None:
    known = KnownTokens([a_group([1, 2])])
    for version in range(34):
        known.add(version, [learned(-1, -1)])
    assert [known.compare([a_group([1, 2], versions=v)], 0).measured for v in range(34)] == [False] * 2 + [True] * 32
    assert (known.has(1), known.has(2)) == (False, True)


@pytest.mark.parametrize(
    ("length", "same", "enough"),
    [(10, 5, True), (10, 4, False), (128, 64, True), (1000, 64, True), (1000, 63, False)],
)
def test_half_of_the_tokens_or_64_are_enough(length: int, same: int, enough: bool) -> None:
    known = KnownTokens([a_group(range(length))])
    known.add(0, [learned(*[-1.0] * length)])
    other = [*range(same), *[-1] * (length - same)]
    found = known.compare([a_group(other)], 0)
    assert (found.shared, found.measured) == (enough, enough)
    found = known.compare([a_group(other, versions=7)], 0)
    assert (found.shared, found.measured) == (enough, False), "of a version that was not scored"


def found_stale(
    engine: Sequence[float], now: Sequence[float], *before: Sequence[float], rounding: float = 1e-4
) -> Stale | None:
    """What is said of an engine that claims version 9, where the learner had these values at it and at those before."""
    known = KnownTokens([a_group(range(len(now)))])
    known.add(9, [learned(*now)])
    for back, values in enumerate(before, start=1):
        known.add(9 - back, [learned(*values)])
    return known.compare([a_group(range(len(now)), logprobs=engine, versions=9)], rounding).stale


def test_an_engine_at_an_older_version_is_stale_however_small_the_step() -> None:
    # An update moves each token by 1e-3; the engine rounds by 1e-4.
    stale = found_stale([-1.0001] * 10, [-1.001] * 10, [-1.0] * 10)
    assert stale is not None
    assert (stale.claimed, stale.served, stale.tokens) == (9, 8, 10)
    figures = (stale.from_claimed, stale.from_served, stale.step)
    assert figures == pytest.approx((9e-4, 1e-4, 1e-3), rel=1e-3)
    assert str(stale) == (
        "claims to serve policy version 9 and is nearer to version 8: over 10 tokens it differs from the learner by "
        "1.00e-04 nats in the mean at version 8, by 9.00e-04 at version 9, and these two by 1.00e-03 from each other"
    )


def test_of_several_older_versions_the_nearest_is_served() -> None:
    stale = found_stale([-1.0] * 10, [-1.03] * 10, [-1.02] * 10, [-1.001] * 10, [-0.98] * 10)
    assert stale is not None
    assert stale.served == 7


UP_AND_DOWN = np.tile([1.0, -1.0], 10)


@pytest.mark.parametrize(("rounding", "found"), [(0.0, 8), (3e-4, 8), (4e-4, None)])
def test_versions_are_told_apart_where_they_differ_by_three_times_the_rounding(rounding: float, found: int) -> None:
    stale = found_stale([-1.0] * 10, [-1.001] * 10, [-1.0] * 10, rounding=rounding)
    assert (stale and stale.served) == found


def test_an_engine_that_rounds_as_at_the_start_is_safe_whichever_way_the_policy_moves() -> None:
    """Even where it always rounds in the direction that the policy comes from."""
    drift = [[-1 - 1e-4 * back] * 10 for back in range(1, 32)]
    assert found_stale([-1 - 5e-4] * 10, [-1.0] * 10, *drift, rounding=0.0) is not None
    assert found_stale([-1 - 5e-4] * 10, [-1.0] * 10, *drift, rounding=4e-4) is None


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (-1 + 0.001 * np.ones(20), "it is at the version that it claims"),
        (-1 + 0.0014 * np.ones(20), "rounding of 0.4 of a step on top of that"),
        (-1 + 0.001 + 0.003 * UP_AND_DOWN, "rounding is more than a step: it is as far from both"),
        (-1 + 0.0005 * np.ones(20), "it is in the middle"),
        (-1 + 0.005 * np.ones(20), "it is at neither"),
        (np.full(20, np.nan), "the gap says so"),
    ],
)
def test_what_is_at_its_version_or_cannot_be_told_from_it_is_not_stale(engine: np.ndarray, why: str) -> None:
    assert found_stale(engine.tolist(), [-0.999] * 20, [-1.0] * 20) is None, why


def test_a_version_that_came_later_is_not_older() -> None:
    known = KnownTokens([a_group(range(4))])
    for version in (8, 9):
        known.add(version, [learned(*[-float(version)] * 4)])
    late = a_group(range(4), logprobs=[-9.0] * 4, versions=8)
    assert known.compare([late], rounding=0).stale is None


def test_a_step_that_changed_nothing_tells_nothing() -> None:
    assert found_stale([-1.0] * 20, [-1.0] * 20, [-1.0] * 20) is None


def test_a_single_token_is_not_the_engine() -> None:
    """The learner rounds one token by far more than an update moves any: the mean alone would call the engine stale."""
    now = [-0.9999] * 19 + [-0.5]
    engine = [-0.9999] * 19 + [-1.0]
    assert found_stale(engine, now, [-1.0] * 20) is None
    assert found_stale([-1.0] * 20, now, [-1.0] * 20) is not None, "where all others say the same"


def test_versions_are_not_told_apart_by_a_few_tokens() -> None:
    known = KnownTokens([a_group(range(20))])
    known.add(8, [learned(*[-1.0] * 20)])
    known.add(9, [learned(*[-2.0] * 20)])
    for of_nine, found in ((9, None), (10, 8)):
        versions = [9] * of_nine + [10] * (20 - of_nine)
        stale = known.compare([a_group(range(20), versions=versions)], rounding=0).stale
        assert (stale and stale.served) == found, "half of 20 tokens"
