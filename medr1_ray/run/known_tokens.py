"""Tokens whose log-probabilities the learner knows already when an engine samples them again.

An engine that samples with a seed repeats, token by token, what another one sampled with it, until the difference
between the two makes it choose another token. So completions of the parity gate's probe, once sampled and then scored
by the learner at each version it passes, stand in for what an engine samples later: over the tokens that both share,
an answer can be compared whenever it comes, also when the learner is at another version by then.

Legend: S tokens of all completions of a probe laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medr1_ray.learner.messages import Gap, GroupLogprobs
from medr1_ray.types import Completions

# So far back: an answer that was asked for longer ago says nothing.
_VERSIONS_KEPT = 8
# Of eight completions, eight tokens each. With fewer, what is shared may be no more than the opening that every
# completion has; where completions are short it is half of their tokens.
_FEWEST_TOKENS = 64


@dataclass(frozen=True)
class Comparison:
    """An engine's answer and the learner's scores: the `gap` over the tokens that could be compared.

    `shared` says whether the answer repeats enough of the known tokens to speak for the engine, `measured` whether
    enough of those are of versions that the learner has scored.
    """

    gap: Gap
    shared: bool
    measured: bool


class KnownTokens:
    """Completions of a probe with the learner's log-probabilities under the latest policy versions.

    Args:
        completions: one group for each of the probe's prompts, sampled with the probe's seed.
    """

    def __init__(self, completions: Sequence[Completions]) -> None:
        self.completions = list(completions)
        self._fewest = min(_FEWEST_TOKENS, sum(each.token_ids.size for each in completions) / 2)
        self._scores: dict[int, NDArray[np.float32]] = {}

    def add(self, version: int, learned: Sequence[GroupLogprobs]) -> None:
        """Note the learner's log-probabilities of the completions at this version; the oldest are forgotten."""
        self._scores[version] = np.concatenate([each.policy_logprobs for each in learned])
        for old in sorted(self._scores)[:-_VERSIONS_KEPT]:
            del self._scores[old]

    def compare(self, sampled: Sequence[Completions]) -> Comparison:
        """Compare what an engine sampled, each token under the version that the engine claims for it."""
        ours, theirs = _shared(self.completions, sampled)
        engine = np.concatenate([each.rollout_logprobs for each in sampled])[theirs]
        claimed = np.concatenate([each.versions for each in sampled])[theirs]
        gap = Gap()
        for version, scores in self._scores.items():
            of_version = claimed == version
            gap += Gap.between(engine[of_version], scores[ours][of_version])
        return Comparison(gap, shared=ours.size >= self._fewest, measured=gap.tokens >= self._fewest)


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
