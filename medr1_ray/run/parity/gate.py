"""The parity gate: engine and learner must give the same log-probabilities to the same tokens and image.

At the start and after the first update it waits: every rollout actor samples completions for the purpose, which the
learner then scores. After each later sync some of the actors are asked to sample beside their other work; nobody waits
for them, since the learner knows most of their tokens beforehand (`known_tokens.py`). What looks wrong there is checked
again in the first way, which decides. Only equal policy versions are compared, and no engine may be nearer to an older
version than to the one that it claims, wherever the two can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medr1_ray.learner.messages import Gap, GroupLogprobs
from medr1_ray.run.parity.known_tokens import KnownTokens
from medr1_ray.types import Completions, Prompt, Sampling

if TYPE_CHECKING:
    from medr1_ray.learner.handle import Learner
    from medr1_ray.pool.groups import RolloutPool

# An actor is compared again after this many syncs at the latest: an eighth of the actors at each.
_SYNCS_BETWEEN = 8


class ParityError(RuntimeError):
    """Engine and learner disagree: their ratios, and so the gradients, would be wrong."""


def require_small_gap(gap: Gap, limit: float, step: int) -> None:
    """Raises ParityError where the gap of a step's tokens has a mean above the limit, in nats."""
    # Not `>`, which a NaN of the engine's would pass.
    if not gap.mean <= limit:
        raise ParityError(
            f"step {step}: the rollout log-probabilities differ from the learner's by {gap.mean:.2e} nats in the mean, "
            f"over {gap.tokens} tokens of the same policy version; the limit is {limit:g} (parity.gap_mean_limit)"
        )


class ParityGate:
    """Compares every rollout actor with the learner on fixed prompts.

    Args:
        pool, learner: both at the same policy version whenever `check` or `follow` is called.
        prompts: the probe, a few of the evaluation prompts.
        sampling: of the probe's completions, as in training.
        limit: largest mean gap of one actor, in nats.
        say: takes a line for the operator.
    """

    def __init__(
        self,
        pool: RolloutPool,
        learner: Learner,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        limit: float,
        say: Callable[[str], None],
    ) -> None:
        self._pool = pool
        self._learner = learner
        self._prompts = list(prompts)
        # Any seed will do: with one, engines of equal weights sample equal tokens.
        self._sampling = replace(sampling, seed=0)
        self._limit = limit
        self._say = say
        self._known: KnownTokens | None = None
        self._rounding = 0.0
        self._syncs = 0
        self._compared: dict[str, int] = {}  # by actor, the sync at which it was compared last

    def check(self, version: int) -> Gap:
        """Probe all rollout actors that serve at `version`, side by side, and wait; one that is lost during the probe
        is left out.

        Raises:
            ParityError: an actor made another number of visual tokens of an image than the learner, sampled with the
                weights of another version, by its own account or because it is nearer to an older one, or has a mean
                gap above the limit. The message says which differs.
        """
        self._syncs += 1
        probes = self._pool.measurements.probe(self._prompts, self._sampling, version)
        # One call for all actors; the answers come in the order of `probes`, which `islice` relies on below.
        learned = iter(self._score([each for completions in probes.values() for each in completions]))
        self._score_known(version)
        total = Gap()
        known: KnownTokens | None = None
        for actor, completions in probes.items():
            of_actor = list(islice(learned, len(completions)))
            total += self._require_equal(actor, completions, of_actor, version)
            if self._known is not None and (stale := self._known.compare(completions, self._rounding).stale):
                raise ParityError(f"{actor} {stale}. Its last weight sync did not take effect")
            self._compared[actor] = self._syncs
            if known is None:
                known = KnownTokens(completions)
                known.add(version, of_actor)
        if self._known is None:
            # At the start there is nothing older to serve; in a resumed run the start model, which is far away.
            self._rounding = total.mean
        self._known = known
        return total

    def follow(self, version: int) -> Gap:
        """Compare what actors have answered since the sync before, and ask the next of them, without waiting for it.

        Each actor is asked at every eighth sync at least, one that has joined at the next. Returns the gap over the
        tokens that were compared. Where an actor seems to differ or to be stale, or samples too little of what is
        known, `check` follows at once: raises as that does.
        """
        self._syncs += 1
        self._score_known(version)
        assert self._known is not None, "check comes first"
        total = Gap()
        in_doubt = False
        for actor, completions in self._pool.measurements.take_probes().items():
            found = self._known.compare(completions, self._rounding)
            # As after many updates, or with wrong weights.
            if not found.shared:
                in_doubt = True
            elif found.stale or not found.gap.mean <= self._limit:
                in_doubt = True
                differs = (
                    f"differs from the learner by {found.gap.mean:.2e} nats in the mean over {found.gap.tokens} tokens "
                    f"(limit {self._limit:g})"
                )
                self._say(f"parity gate: {actor} {found.stale or differs}; all actors are compared once more")
            else:
                total += found.gap
                if found.measured:
                    self._compared[actor] = self._syncs
        if in_doubt:
            return total + self.check(version)
        self._pool.measurements.begin_probe(self._next(), self._prompts, self._sampling, version)
        return total

    def _next(self) -> list[str]:
        """The actors that were never compared, and of the others those for which it is longest ago."""
        serving, begun = self._pool.rollout_names, set(self._pool.measurements.begun)
        free = sorted((name for name in serving if name not in begun), key=lambda name: self._compared.get(name, 0))
        new = sum(name not in self._compared for name in free)
        return free[: max(new, ceil(len(serving) / _SYNCS_BETWEEN))]

    def _score_known(self, version: int) -> None:
        if self._known is not None and not self._known.has(version):
            self._known.add(version, self._score(self._known.completions))

    def _score(self, completions: Sequence[Completions], *, plain: bool = False) -> list[GroupLogprobs]:
        """The learner's log-probabilities of groups for the probe's prompts, in turn."""
        rounds = len(completions) // len(self._prompts)
        pairs = list(zip(self._prompts * rounds, completions, strict=True))
        return self._learner.logprobs(pairs, plain=plain, meanwhile=self._pool.poll) if pairs else []

    def _require_equal(
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
        engine = np.concatenate([sampled.rollout_logprobs for sampled in completions])
        packed = _logprobs(learned)
        gap = Gap.between(engine, packed)
        if gap.mean <= self._limit:
            return gap
        # Only on failure: plain rows repeat the prompt for every completion, which is much slower.
        plain = _logprobs(self._score(completions, plain=True))
        engine_gap, packing_gap = Gap.between(engine, plain), Gap.between(packed, plain)
        side = "the engine" if engine_gap.mean > packing_gap.mean else "the learner's shared-prompt packing"
        raise ParityError(
            f"{actor} and the learner disagree at policy version {version}: the log-probabilities of the same tokens "
            f"differ by {gap.mean:.2e} nats in the mean and {gap.max:.2e} at most (limit of the mean: {self._limit:g}, "
            f"parity.gap_mean_limit). From plain rows of the learner's weights the engine differs by "
            f"{engine_gap.mean:.2e}, the packed learner by {packing_gap.mean:.2e}: it is {side} that differs"
        )


def _logprobs(learned: Sequence[GroupLogprobs]) -> NDArray[np.float32]:
    return np.concatenate([each.policy_logprobs for each in learned])
