"""The GRPO objective as pure functions over flat token arrays.

Shapes: P prompts, G completions of a group, N completions, S tokens of all N completions laid end to end.

The loss of a batch is a plain weighted sum over its tokens,

    L = sum_t  w_t * ( -c_t * min(rho_t A, clip(rho_t, 1 - low, 1 + high) A) + beta * KL_t ),

with rho_t = exp(policy - old) and c_t = min(exp(old - rollout), cap). A batch is what one optimizer step learns from:
all groups of the rollouts, or one of `train.minibatches` parts. The weights w come from the WHOLE batch, so the sum
over micro-batches and ranks is the same however the batch is cut (a completion never is).

What differs from GRPO (Shao et al., arXiv 2402.03300, eq. 3 and 4), and why:
- w_t is 1 / (N |o|) there (`sequence`). `token` is DAPO's 1 / S (arXiv 2503.14476, section 3.3), which gives the
  tokens of long completions no less weight; `dr_grpo` is 1 / (N max_tokens) (arXiv 2503.20783, section 3.2), which
  does not reward long wrong completions.
- The upper and the lower clip differ if wanted (DAPO, section 3.1).
- With the ratio of `sequence` rho and c are the same for all tokens of a completion, the exponential of the mean of
  their logarithms: GSPO's s_i (arXiv 2507.18071, eq. 5 and 7), whose clip ranges are some hundred times narrower.
- c_t corrects for the engine that sampled: its kernels round otherwise, and in asynchronous training its weights are
  older. It is truncated importance sampling (Ionides 2008; per token as in Yao et al. 2025, "Your efficient RL
  framework secretly brings you off-policy RL training"), a constant under the gradient, and not applied to the KL.
- "Old" is the policy before the first optimizer step on the rollouts, scored by the learner: with one step (one
  mini-batch, one pass) it is the policy itself, rho is exactly 1, and nothing is clipped. From the second mini-batch on
  it is not, as in DAPO (16 mini-batches, section 4.1) and GSPO (4, section 5.1), whose clip ranges are meant for that.

The advantages A come with the groups (`rewards/advantages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor

from medr1_ray.config import LossSettings
from medr1_ray.learner.messages import BatchSize, PolicyStatistics, TokenSums
from medr1_ray.types import Group


@dataclass(frozen=True)
class TokenBatch:
    """Inputs of the loss besides the policy: float [S] each, `versions` int [S], `lengths` int [N].

    `lengths` cuts the tokens into completions; `versions` is the policy version that sampled a token;
    `reference_logprobs` is None where no KL is taken.
    """

    lengths: Tensor
    advantages: Tensor
    weights: Tensor
    rollout_logprobs: Tensor
    versions: Tensor
    reference_logprobs: Tensor | None = None

    @classmethod
    def of(cls, groups: Sequence[Group], settings: LossSettings, batch: BatchSize) -> TokenBatch:
        """The tokens of groups that are part of a batch of this size; with a KL each has `reference_logprobs`."""
        completions = [group.completions for group in groups]
        lengths = torch.from_numpy(np.concatenate([each.lengths for each in completions])).long()
        advantages = torch.from_numpy(np.concatenate([group.advantages for group in groups]))
        return cls(
            lengths=lengths,
            advantages=advantages.repeat_interleave(lengths),
            weights=token_weights(lengths, settings.aggregation, batch),
            rollout_logprobs=torch.from_numpy(np.concatenate([each.rollout_logprobs for each in completions])),
            versions=torch.from_numpy(np.concatenate([each.versions for each in completions])),
            reference_logprobs=None
            if settings.kl_beta == 0
            else torch.from_numpy(np.concatenate([group.reference_logprobs for group in groups])),
        )

    def to(self, device: torch.device) -> TokenBatch:
        """The same on another device."""
        reference = self.reference_logprobs
        return TokenBatch(
            self.lengths.to(device),
            self.advantages.to(device),
            self.weights.to(device),
            self.rollout_logprobs.to(device),
            self.versions.to(device),
            reference if reference is None else reference.to(device),
        )


def kl(policy: Tensor, reference: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate of KL(policy || reference) from log-probabilities of tokens that the policy sampled.

    With d = reference - policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d (Schulman 2020,
    http://joschu.net/blog/kl-approx.html; k3 is GRPO's, eq. 4). As a loss k1 has no gradient in expectation.
    """
    difference = reference - policy
    match estimator:
        case "k1":
            return -difference
        case "k2":
            return difference.square() / 2
        case "k3":
            return difference.exp() - 1 - difference
        case _:
            assert_never(estimator)


def token_weights(
    lengths: Tensor, aggregation: Literal["sequence", "token", "dr_grpo"], batch: BatchSize
) -> Tensor:
    """The weight w of every token of completions of these lengths (int [N]): float32 [S], see the module's top."""
    match aggregation:
        case "sequence":
            # Clamped because a completion may be empty. In float64, so that a weight is rounded only once, to float32.
            per_completion = 1.0 / (batch.completions * lengths.clamp(min=1).double())
        case "token":
            per_completion = torch.full_like(lengths, 1.0 / batch.tokens, dtype=torch.float64)
        case "dr_grpo":
            per_completion = torch.full_like(
                lengths, 1.0 / (batch.completions * batch.max_tokens), dtype=torch.float64
            )
        case _:
            assert_never(aggregation)
    return per_completion.float().repeat_interleave(lengths)


def loss_and_sums(
    policy_logprobs: Tensor, old_logprobs: Tensor, tokens: TokenBatch, settings: LossSettings, version: int | None
) -> tuple[Tensor, TokenSums]:
    """The weighted sum of the objective over these tokens, and its diagnostics.

    Args:
        policy_logprobs: float32 [S], with a graph.
        old_logprobs: float32 [S], without one; `policy_logprobs.detach()` in the first step on the rollouts.
        version: the policy version of `old_logprobs`, which decides what counts as gap and what as drift; None in later
            passes over the same tokens, which count neither again.
    """
    ratio = _ratio(policy_logprobs, old_logprobs, tokens.lengths, settings.ratio)
    # The minimum below selects the clipped value only where the policy has already moved in the direction of the
    # advantage: a token that has moved the wrong way keeps its gradient.
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    objective = torch.minimum(ratio * tokens.advantages, clipped * tokens.advantages)
    importance = torch.ones_like(old_logprobs)
    if settings.importance_cap is not None:
        # Old over rollout, not policy over rollout: `ratio` already is policy over old, so their product is policy over
        # rollout. Neither has a graph.
        importance = _ratio(old_logprobs, tokens.rollout_logprobs, tokens.lengths, settings.ratio)
        importance = importance.clamp(max=settings.importance_cap)
    per_token = -objective * importance
    divergence = torch.zeros_like(old_logprobs)
    if tokens.reference_logprobs is not None:
        divergence = kl(policy_logprobs, tokens.reference_logprobs, settings.kl_estimator)
        per_token = per_token + settings.kl_beta * divergence
    loss = (tokens.weights * per_token).sum()
    with torch.no_grad():
        sums = _sums(old_logprobs, ratio, importance, divergence, tokens, settings, version)
    return loss, sums


def _ratio(above: Tensor, below: Tensor, lengths: Tensor, of: Literal["token", "sequence"]) -> Tensor:
    """Float [S]: exp(above - below), or the same with the mean over the token's completion in the exponent."""
    difference = above - below
    if of == "sequence":
        # int [S], the completion of each token: with one argument `repeat_interleave` repeats the indices 0, 1, ...
        completion = torch.repeat_interleave(lengths)
        totals = difference.new_zeros(lengths.numel()).index_add(0, completion, difference)
        difference = (totals / lengths.clamp(min=1))[completion]
    return difference.exp()


def statistics(parts: Iterable[TokenSums]) -> PolicyStatistics:
    """Means and maxima from the sums of all micro-batches and ranks."""
    total = sum(parts, start=TokenSums())

    def mean(value: float, count: float) -> float | None:
        return value / count if count else None

    return PolicyStatistics(
        ratio_max=total.ratio_max if total.tokens else None,
        clip_low_fraction=mean(total.clipped_low, total.tokens),
        clip_high_fraction=mean(total.clipped_high, total.tokens),
        importance_mean=mean(total.importance, total.tokens),
        importance_capped_fraction=mean(total.importance_capped, total.tokens),
        kl=mean(total.kl, total.tokens),
        logprob_gap_tokens=int(total.gap_tokens),
        logprob_gap_mean=mean(total.gap, total.gap_tokens),
        logprob_gap_max=total.gap_max if total.gap_tokens else None,
        version_drift=mean(total.drift, total.drift_tokens),
    )


def _sums(
    old: Tensor,
    ratio: Tensor,
    importance: Tensor,
    divergence: Tensor,
    tokens: TokenBatch,
    settings: LossSettings,
    version: int | None,
) -> TokenSums:
    # All completions of the micro-batch are empty; `max` of an empty tensor raises.
    if old.numel() == 0:
        return TokenSums()
    cap = math.inf if settings.importance_cap is None else settings.importance_cap
    gap = (old - tokens.rollout_logprobs).abs()
    # At equal versions a difference is an error; at older versions it also shows how far the policy has moved.
    same, older = _of_versions(tokens.versions, version)
    own_gap = torch.where(same, gap, 0.0)
    # One transfer for all of them: every `.item()` would synchronise with the GPU.
    values = torch.stack(
        [
            ratio.max(),
            # Count only tokens that lose their gradient: below the range with a negative advantage, above it with a
            # positive one.
            ((ratio < 1 - settings.clip_low) & (tokens.advantages < 0)).sum(),
            ((ratio > 1 + settings.clip_high) & (tokens.advantages > 0)).sum(),
            importance.sum(),
            # `importance` has been clamped already, so capped weights equal the cap.
            (importance >= cap).sum(),
            divergence.sum(),
            same.sum(),
            own_gap.sum(),
            own_gap.max(),
            older.sum(),
            torch.where(older, gap, 0.0).sum(),
        ]
    ).tolist()
    (ratio_max, low, high, weight, capped, kl_sum, same_count, gap_sum, gap_max, older_count, drift) = values
    return TokenSums(
        tokens=old.numel(),
        ratio_max=ratio_max,
        clipped_low=low,
        clipped_high=high,
        importance=weight,
        importance_capped=capped,
        kl=kl_sum,
        gap_tokens=same_count,
        gap=gap_sum,
        # Without a token of this version the maximum above is 0, which would read as perfect agreement.
        gap_max=gap_max if same_count else -math.inf,
        drift_tokens=older_count,
        drift=drift,
    )


def _of_versions(versions: Tensor, version: int | None) -> tuple[Tensor, Tensor]:
    """Bool [S] each: the tokens that this version sampled, and those of older ones; none in a later pass."""
    if version is None:
        neither = torch.zeros_like(versions, dtype=torch.bool)
        return neither, neither
    return versions == version, versions != version
