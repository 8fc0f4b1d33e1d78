"""Tokens whose log-probabilities the learner knows already when an engine samples them again.

An engine that samples with a seed repeats, token by token, what another one sampled with it, until the difference
between the two makes it choose another token. So completions of the parity gate's probe, once sampled and then scored
by the learner at each version it passes, stand in for what an engine samples later: over the tokens that both share,
an answer can be compared whenever it comes, also when the learner is at another version by then: with the version that
the engine claims, and with those before, which it may be serving instead.

Legend: S tokens of all completions of a probe laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medr1_ray.learner.messages import Gap, GroupLogprobs
from medr1_ray.types import Completions

# So far back an engine may have stopped loading. At small learning rates its version can be told from later ones only
# after several updates.
_VERSIONS_KEPT = 32
# Of eight completions, eight tokens each. With fewer, what is shared may be no more than the opening that every
# completion has; where completions are short it is half of their tokens.
_FEWEST_TOKENS = 64
# Versions whose scores differ by more than this many times what engine and learner differ by at equal weights.
_TOLD_APART = 3


@dataclass(frozen=True)
class Stale:
    """An engine serves an older policy version than it claims: how far it is from the learner at either, and how far
    those are from each other (`step`), in nats, in the mean over `tokens`."""

    claimed: int
    served: int
    tokens: int
    from_claimed: float
    from_served: float
    step: float

    def __str__(self) -> str:
        return (
            f"claims to serve policy version {self.claimed} and is nearer to version {self.served}: over {self.tokens} "
            f"tokens it differs from the learner by {self.from_served:.2e} nats in the mean at version {self.served}, "
            f"by {self.from_claimed:.2e} at version {self.claimed}, and these two by {self.step:.2e} from each other"
        )


@dataclass(frozen=True)
class Comparison:
    """An engine's answer and the learner's scores: the `gap` over the tokens that could be compared.

    `shared` says whether the answer repeats enough of the known tokens to speak for the engine, `measured` whether
    enough of those are of versions that the learner has scored.
    """

    gap: Gap
    shared: bool
    measured: bool
    stale: Stale | None


class KnownTokens:
    """Completions of a probe with the learner's log-probabilities under the latest policy versions.

    Args:
        completions: one group for each of the probe's prompts, sampled with the probe's seed.
    """

    def __init__(self, completions: Sequence[Completions]) -> None:
        self.completions = list(completions)
        self._fewest = min(_FEWEST_TOKENS, sum(each.token_ids.size for each in completions) / 2)
        self._scores: dict[int, NDArray[np.float32]] = {}

    def has(self, version: int) -> bool:
        """Whether the learner has scored them at this version."""
        return version in self._scores

    def add(self, version: int, learned: Sequence[GroupLogprobs]) -> None:
        """Note the learner's log-probabilities of the completions at this version; the oldest are forgotten."""
        self._scores[version] = np.concatenate([each.policy_logprobs for each in learned])
        for old in sorted(self._scores)[:-_VERSIONS_KEPT]:
            del self._scores[old]

    def compare(self, sampled: Sequence[Completions], rounding: float) -> Comparison:
        """Compare what an engine sampled, each token under the version that the engine claims for it.

        `rounding` is the mean gap of engines that are right, in nats.
        """
        ours, theirs = _shared(self.completions, sampled)
        engine = np.concatenate([each.rollout_logprobs for each in sampled])[theirs]
        claimed = np.concatenate([each.versions for each in sampled])[theirs]
        gap = Gap()
        stale: list[Stale] = []
        for version, scores in self._scores.items():
            of_version = claimed == version
            sampled_then, now = engine[of_version], scores[ours][of_version]
            gap += Gap.between(sampled_then, now)
            for older in [each for each in self._scores if each < version and now.size >= self._fewest]:
                before = self._scores[older][ours][of_version]
                if distances := _if_nearer(sampled_then, now, before, rounding):
                    stale.append(Stale(version, older, now.size, *distances))
        return Comparison(
            gap,
            shared=ours.size >= self._fewest,
            measured=gap.tokens >= self._fewest,
            stale=min(stale, key=lambda each: each.from_served, default=None),
        )


def _if_nearer(
    engine: NDArray[np.float32], now: NDArray[np.float32], before: NDArray[np.float32], rounding: float
) -> tuple[float, float, float] | None:
    """The mean distances of engine and `now`, engine and `before`, and of these two, where the engine is at `before`.

    It is where these two differ by more than `_TOLD_APART` times the rounding, the engine is away from `before` by less
    than half of that, and is nearer to it at two tokens for every one that is nearer to `now` (a few tokens may make a
    mean). An engine at `now` is away from `before` by their difference less its own rounding, so that it is safe until
    it rounds by 1.5 times as much.
    """
    from_now, from_before, step = np.abs(engine - now), np.abs(engine - before), np.abs(now - before)
    nearer, farther = (from_before < from_now).sum(), (from_now < from_before).sum()
    told_apart = step.mean() > _TOLD_APART * rounding
    if not (told_apart and 2 * from_before.mean() < step.mean() and nearer >= 2 * farther):
        return None
    return float(from_now.mean()), float(from_before.mean()), float(step.mean())


def _shared(left: Sequence[Completions], right: Sequence[Completions]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where, among the S tokens of each side, those are that both sampled after the same tokens."""
    lefts, rights = [], []
    left_start = right_start = 0
    for one, other in zip(left, right, strict=True):
        parts = zip(_completions(one), _completions(other), strict=True)
        for ids, other_ids in parts:
            both = min(ids.size, other_ids.size)
            different = ids[:both] != other_ids[:both]
            same = int(different.argmax()) if different.any() else both
            lefts.append(np.arange(left_start, left_start + same))
            rights.append(np.arange(right_start, right_start + same))
            left_start += ids.size
            right_start += other_ids.size
    return np.concatenate(lefts), np.concatenate(rights)


def _completions(group: Completions) -> list[NDArray[np.int32]]:
    """The token ids of each completion."""
    return np.split(group.token_ids, np.cumsum(group.lengths)[:-1])
