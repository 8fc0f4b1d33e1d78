"""What is shared between what the learner knows and what an engine samples, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from medr1_ray.learner.messages import GroupLogprobs
from medr1_ray.run.known_tokens import KnownTokens
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
    gap = known.compare(sampled).gap
    assert (gap.mean, gap.max, gap.tokens) == (pytest.approx(1.5 / 5), 1.0, 5)


def test_a_token_is_compared_with_the_scores_of_its_own_version_alone() -> None:
    known = KnownTokens([a_group([1, 2, 3, 4])])
    sampled = [a_group([1, 2, 3, 4], logprobs=[-1, -1, -2.5, -9], versions=[3, 3, 4, 5])]
    known.add(3, [learned(-1, -1, -1, -1)])
    assert known.compare(sampled).gap.tokens == 2
    known.add(4, [learned(-2, -2, -2, -2)])
    # What is of version 5 cannot be compared yet.
    gap = known.compare(sampled).gap
    assert (gap.mean, gap.tokens) == (pytest.approx(0.5 / 3), 3)


def test_scores_of_long_ago_are_forgotten() -> None:
    known = KnownTokens([a_group([1, 2])])
    for version in range(10):
        known.add(version, [learned(-1, -1)])
    assert [known.compare([a_group([1, 2], versions=v)]).measured for v in range(10)] == [False] * 2 + [True] * 8


@pytest.mark.parametrize(
    ("length", "same", "enough"),
    [(10, 5, True), (10, 4, False), (128, 64, True), (1000, 64, True), (1000, 63, False)],
)
def test_half_of_the_tokens_or_64_are_enough(length: int, same: int, enough: bool) -> None:
    known = KnownTokens([a_group(range(length))])
    known.add(0, [learned(*[-1.0] * length)])
    other = [*range(same), *[-1] * (length - same)]
    found = known.compare([a_group(other)])
    assert (found.shared, found.measured) == (enough, enough)
    found = known.compare([a_group(other, versions=7)])
    assert (found.shared, found.measured) == (enough, False), "of a version that was not scored"
