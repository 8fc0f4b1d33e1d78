"""The parity gate: engine and learner must give the same log-probabilities to the same tokens and image.

Runs at the start and after the first update, on every rollout actor, with completions sampled for the purpose; in
asynchronous runs after each sync, because training rollouts then mix versions. Only equal policy versions are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medr1_ray.learner.messages import Gap, GroupLogprobs
from medr1_ray.types import Completions, Prompt, Sampling

if TYPE_CHECKING:
    from medr1_ray.learner.handle import Learner
    from medr1_ray.pool.groups import RolloutPool


class ParityError(RuntimeError):
    """Engine and learner disagree: their ratios, and so the gradients, would be wrong."""


class ParityGate:
    """Compares every rollout actor with the learner on fixed prompts.

    Args:
        pool, learner: both at the same policy version whenever `check` is called.
        prompts: the probe, a few of the evaluation prompts.
        sampling: of the probe's completions, as in training.
        limit: largest mean gap of one actor, in nats.
    """

    def __init__(
        self, pool: RolloutPool, learner: Learner, prompts: Sequence[Prompt], sampling: Sampling, limit: float
    ) -> None:
        self._pool = pool
        self._learner = learner
        self._prompts = list(prompts)
        self._sampling = sampling
        self._limit = limit

    def check(self, version: int) -> Gap:
        """Probe all rollout actors that serve at `version`, side by side; one that is lost during the probe is left
        out.

        Raises:
            ParityError: an actor made another number of visual tokens of an image than the learner, sampled with the
                weights of another version, or has a mean gap above the limit. The message says which differs.
        """
        probes = self._pool.probe(self._prompts, self._sampling, version)
        sampled = [pair for completions in probes.values() for pair in zip(self._prompts, completions, strict=True)]
        # One call for all actors; the answers come in the order of `probes`, which `islice` relies on below.
        learned = iter(self._learner.logprobs(sampled, meanwhile=self._pool.poll) if sampled else [])
        total = Gap()
        for actor, completions in probes.items():
            total += self._compare(actor, completions, list(islice(learned, len(completions))), version)
        return total

    def _compare(
        self, actor: str, completions: Sequence[Completions], learned: Sequence[GroupLogprobs], version: int
    ) -> Gap:
        for prompt, sampled, ours in zip(self._prompts, completions, learned, strict=True):
            # The causes that can be named come first; either of them would also make a large gap.
            if sampled.visual_tokens != ours.visual_tokens:
                raise ParityError(
                    f"{actor} made {sampled.visual_tokens} visual tokens of the image of {prompt.id!r}, the learner "
                    f"{ours.visual_tokens}: their image processors differ (preprocessor settings of model.path, "
                    "rollout.engine.mm_processor_kwargs)"
                )
            if (sampled.versions != version).any():
                raise ParityError(
                    f"{actor} sampled with policy version {sorted(set(sampled.versions.tolist()))} where only "
                    f"{version} was to be served: its last weight sync did not take effect"
                )
        engine = [sampled.rollout_logprobs for sampled in completions]
        packed = [each.policy_logprobs for each in learned]
        gap = _gap(engine, packed)
        if gap.mean <= self._limit:
            return gap
        # Only on failure: plain rows repeat the prompt for every completion, which is much slower.
        pairs = list(zip(self._prompts, completions, strict=True))
        rows = self._learner.logprobs(pairs, plain=True, meanwhile=self._pool.poll)
        plain = [each.policy_logprobs for each in rows]
        engine_gap, packing_gap = _gap(engine, plain), _gap(packed, plain)
        side = "the engine" if engine_gap.mean > packing_gap.mean else "the learner's shared-prompt packing"
        raise ParityError(
            f"{actor} and the learner disagree at policy version {version}: the log-probabilities of the same tokens "
            f"differ by {gap.mean:.2e} nats in the mean and {gap.max:.2e} at most (limit of the mean: {self._limit:g}, "
            f"parity.gap_mean_limit). From plain rows of the learner's weights the engine differs by "
            f"{engine_gap.mean:.2e}, the packed learner by {packing_gap.mean:.2e}: it is {side} that differs"
        )


def _gap(left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> Gap:
    differences = np.abs(np.concatenate(left) - np.concatenate(right))
    return Gap(float(differences.mean()), float(differences.max()), differences.size)
