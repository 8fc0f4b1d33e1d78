"""Messages between the driver and the learner ranks: frozen, picklable, flat arrays only. Shapes as in `types.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medr1_ray.config import (
    ClusterSettings,
    Config,
    LearnerSettings,
    LossSettings,
    ModelSettings,
    ReferenceSettings,
    TrainSettings,
)
from medr1_ray.types import Completions, Group, Prompt, Span


class LearnerLostError(RuntimeError):
    """A rank died or did not answer in time; the others cannot go on without it, but the run can, from a checkpoint."""


class LearnerLateError(LearnerLostError):
    """A rank did not answer in time."""


@dataclass(frozen=True)
class RankSettings:
    """The sections of the settings that a learner rank reads.

    `temperature` is `rollout.temperature`; `takes_kl` says whether the objective has a KL to the reference.
    """

    model: ModelSettings
    train: TrainSettings
    learner: LearnerSettings
    loss: LossSettings
    reference: ReferenceSettings
    cluster: ClusterSettings
    temperature: float
    takes_kl: bool

    @classmethod
    def of(cls, config: Config) -> RankSettings:
        return cls(
            config.model,
            config.train,
            config.learner,
            config.loss,
            config.reference,
            config.cluster,
            config.rollout.temperature,
            config.takes_kl,
        )


@dataclass(frozen=True)
class MicroBatch:
    """Indices of the groups, each a row, that go through the model in one forward pass. `padding` marks a micro-batch
    that only keeps a rank in step with the others: its tokens get weight 0 and count in no statistic."""

    groups: tuple[int, ...]
    padding: bool = False


@dataclass(frozen=True)
class BatchSize:
    """The normalisers of an optimizer step's loss: completions and tokens of all its groups, on all ranks, those that
    skip the model included, and the most tokens that a completion may have."""

    completions: int
    tokens: int
    max_tokens: int


@dataclass(frozen=True)
class MiniBatch:
    """One rank's part of an optimizer step: its micro-batches, which index the request's groups, and what the loss of
    all ranks is divided by."""

    micro_batches: tuple[MicroBatch, ...]
    batch: BatchSize


@dataclass(frozen=True)
class UpdateRequest:
    """One rank's part of an update: its groups, and its mini-batches in their order, each group in one of them. Of a
    group that is cut over rows (`batching.py`) each row is a group here.

    `version` is the policy version that the learner holds, i.e. the optimizer steps it has done.
    """

    version: int
    groups: tuple[Group, ...]
    mini_batches: tuple[MiniBatch, ...]


@dataclass(frozen=True)
class LogprobsRequest:
    """One rank's part of a computation of log-probabilities: prompts with completions, and its micro-batches, which
    index `groups`. `plain` gives each completion a row of its own."""

    groups: tuple[tuple[Prompt, Completions], ...]
    micro_batches: tuple[MicroBatch, ...]
    plain: bool


@dataclass(frozen=True)
class ImitationRequest:
    """One rank's part of a supervised batch, which is one optimizer step, with completions that were not sampled."""

    version: int
    demonstrations: tuple[tuple[Prompt, Completions], ...]
    micro_batches: tuple[MicroBatch, ...]
    batch: BatchSize


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step: the loss before it, the gradient's norm before clipping, and the rate that it took."""

    loss: float
    grad_norm: float
    learning_rate: float

    @property
    def skipped(self) -> bool:
        """Whether the gradient was not finite, so that the step changed nothing."""
        return not math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class TokenSums:
    """Sums and maxima over tokens that add up over micro-batches and ranks; `grpo.statistics` makes means of them."""

    tokens: float = 0.0
    ratio_max: float = -math.inf
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    importance: float = 0.0
    importance_capped: float = 0.0
    kl: float = 0.0
    gap_tokens: float = 0.0
    gap: float = 0.0
    gap_max: float = -math.inf
    drift_tokens: float = 0.0
    drift: float = 0.0

    def __add__(self, other: TokenSums) -> TokenSums:
        return TokenSums(
            **{
                # The field's name decides: maxima end in `_max`, everything else adds up.
                name: _largest(value, vars(other)[name]) if name.endswith("_max") else value + vars(other)[name]
                for name, value in vars(self).items()
            }
        )


@dataclass(frozen=True)
class RankReport:
    """One rank's result of an update; `steps` holds this rank's share of the loss."""

    steps: tuple[OptimizerStep, ...]
    sums: TokenSums
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class PolicyStatistics:
    """Means over the tokens that went through the learner; None where there was no such token.

    `kl` is the mean of the chosen estimator. `logprob_gap_*` is the absolute difference between the engines and the
    learner before the update, over the `logprob_gap_tokens` that were sampled with the same weights; `version_drift`
    its mean over tokens of older weights. Both count a token once, however many passes there are.
    """

    ratio_max: float | None
    clip_low_fraction: float | None
    clip_high_fraction: float | None
    importance_mean: float | None
    importance_capped_fraction: float | None
    kl: float | None
    logprob_gap_tokens: int
    logprob_gap_mean: float | None
    logprob_gap_max: float | None
    version_drift: float | None


@dataclass(frozen=True)
class UpdateReport:
    """The result of an update. `version` is the learner's afterwards; `steps` has one entry per optimizer step.

    `groups` and `tokens` (of completions) are the whole batch's; `groups_zero_variance` of them had equal rewards and
    `groups_skipped` of those did not go through the model because nothing could be learned from them.
    `padded_tokens` went through it in each of the `passes`, prompts (in each of a group's rows) and padding included.
    `model_flops` are the operations that this needs (`model/operations.py`), `peak_flops` the operations per second of
    all ranks' devices at best, None where unknown.
    """

    version: int
    steps: tuple[OptimizerStep, ...]
    statistics: PolicyStatistics
    groups: int
    groups_zero_variance: int
    groups_skipped: int
    tokens: int
    padded_tokens: int
    passes: int
    model_flops: float
    peak_flops: float | None
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class ImitationReport:
    """The result of a supervised step. `version` is the learner's afterwards; the step's loss is the mean negative
    log-likelihood of the batch's `tokens`, in nats; the others as in `UpdateReport`."""

    version: int
    step: OptimizerStep
    tokens: int
    padded_tokens: int
    model_flops: float
    peak_flops: float | None
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class GroupLogprobs:
    """The policy's log-probabilities float32 [S] of one group's completions, and the number of visual tokens that the
    learner's image processor made of the image."""

    policy_logprobs: NDArray[np.float32]
    visual_tokens: int


@dataclass(frozen=True)
class Gap:
    """Absolute differences between rollout and policy log-probabilities, in nats, over `tokens` tokens."""

    mean: float = 0.0
    max: float = 0.0
    tokens: int = 0

    @classmethod
    def of(cls, statistics: PolicyStatistics) -> Gap:
        """The gap that an update measured over the tokens of the learner's own version; 0 over 0 where none was."""
        return cls(
            statistics.logprob_gap_mean or 0.0, statistics.logprob_gap_max or 0.0, statistics.logprob_gap_tokens
        )

    @classmethod
    def between(cls, rollout: NDArray[np.float32], policy: NDArray[np.float32]) -> Gap:
        """The gap of float32 [S] log-probabilities of the same tokens."""
        differences = np.abs(rollout - policy)
        return cls(float(differences.mean()), float(differences.max()), differences.size) if differences.size else cls()

    def __add__(self, other: Gap) -> Gap:
        """Over the tokens of both."""
        tokens = self.tokens + other.tokens
        mean = (self.mean * self.tokens + other.mean * other.tokens) / tokens if tokens else 0.0
        return Gap(mean, _largest(self.max, other.max), tokens)


def _largest(left: float, right: float) -> float:
    """NaN where one of them is, which `max` would drop."""
    return float(np.maximum(left, right))
