"""The numbers of one step, under the names that `tracking.METRICS` documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medr1_ray.learner.messages import ImitationReport, UpdateReport
from medr1_ray.pool.actor_states import MembershipCounts
from medr1_ray.pool.group_ledger import LedgerCounts
from medr1_ray.records.busy_time import seconds_of
from medr1_ray.types import Group, ScoredPrompt, Span

_DRIVER_PHASES = ("rollout", "update", "weight_sync", "parity", "evaluation", "checkpoint")


@dataclass(frozen=True)
class Resources:
    """What a step ran on; `price_per_hour` is that of all of it, None where prices are not known."""

    learner_ranks: int
    rollout_actors: int
    reward_actors: int
    price_per_hour: float | None


def step_metrics(
    groups: Sequence[Group],
    report: UpdateReport,
    counts: LedgerCounts,
    members: MembershipCounts,
    refused: Mapping[str, int],
    spans: Sequence[Span],
    busy: Mapping[str, float],
    resources: Resources,
) -> dict[str, float | None]:
    """Metrics of the step that `report` is of; None where there was nothing to measure.

    `refused` counts questions that were no prompts, by reason; `spans` are those since the step before, and `busy`
    each actor's seconds at work in them.
    """
    totals = np.concatenate([group.rewards.total for group in groups])
    lengths = np.concatenate([group.completions.lengths for group in groups])
    staleness = report.version - len(report.steps) - np.concatenate([g.completions.versions for g in groups])
    statistics = report.statistics
    driver = {phase: _seconds(spans, "driver", phase) for phase in _DRIVER_PHASES}
    step_seconds = driver["rollout"] + driver["update"] + driver["weight_sync"] + driver["parity"]
    return {
        "reward/total_mean": float(totals.mean()),
        "reward/total_std": float(totals.std()),
        "reward/group_std_mean": float(np.mean([group.rewards.total.std(ddof=1) for group in groups])),
        "reward/accuracy_mean": float(np.mean([group.rewards.correct.mean() for group in groups])),
        "reward/format_mean": float(np.mean([group.rewards.well_formed.mean() for group in groups])),
        "reward/zero_variance_fraction": report.groups_zero_variance / report.groups,
        "completion/length_tokens_mean": float(lengths.mean()),
        "completion/length_tokens_max": float(lengths.max()),
        "completion/truncated_fraction": float(np.mean([g.completions.truncated.mean() for g in groups])),
        "completion/no_answer_fraction": float(
            np.mean([answer is None for group in groups for answer in group.rewards.answers])
        ),
        "policy/entropy": -float(
            np.concatenate([group.completions.rollout_logprobs for group in groups]).mean()
        ),
        "policy/ratio_max": statistics.ratio_max,
        "policy/clip_low_fraction": statistics.clip_low_fraction,
        "policy/clip_high_fraction": statistics.clip_high_fraction,
        "policy/importance_mean": statistics.importance_mean,
        "policy/importance_capped_fraction": statistics.importance_capped_fraction,
        "policy/kl": statistics.kl,
        "policy/logprob_gap_mean": statistics.logprob_gap_mean,
        "policy/logprob_gap_max": statistics.logprob_gap_max,
        "policy/version_drift": statistics.version_drift,
        "loss/total": float(np.mean([step.loss for step in report.steps])),
        "optim/grad_norm": float(np.mean([step.grad_norm for step in report.steps])),
        "optim/learning_rate": report.steps[-1].learning_rate,
        "staleness/mean": float(staleness.mean()),
        "staleness/max": float(staleness.max()),
        "ledger/groups_issued": counts.issued,
        "ledger/groups_used": counts.used,
        "ledger/groups_in_flight": counts.in_flight,
        "ledger/groups_dropped": counts.dropped_total,
        "ledger/groups_zero_variance": counts.zero_variance,
        "ledger/groups_reissued": counts.reissued,
        "ledger/answers_late": counts.late,
        "ledger/prompts_dropped": sum(refused.values()),
        "pool/actors_wanted": members.target,
        "pool/actors_serving": members.serving,
        "pool/actors_lost": members.lost,
        "time/step_seconds": step_seconds,
        "time/reward_seconds": _seconds(spans, "reward", ""),
        **{f"time/{phase}_seconds": seconds for phase, seconds in driver.items()},
        "perf/learner_idle_fraction": _idle_fraction(busy, "learner-", resources.learner_ranks * step_seconds),
        "perf/rollout_idle_fraction": _idle_fraction(busy, "rollout-", resources.rollout_actors * step_seconds),
        "perf/reward_idle_fraction": _idle_fraction(busy, "reward-", resources.reward_actors * step_seconds),
        "perf/cost_per_1000_groups": None
        if resources.price_per_hour is None
        else resources.price_per_hour * step_seconds / 3600 * 1000 / len(groups),
        "perf/completions_per_second": lengths.size / step_seconds,
        "perf/rollout_tokens_per_second": float(lengths.sum()) / step_seconds,
        "perf/learner_tokens_per_second": report.padded_tokens / driver["update"],
        "perf/generation_tokens_per_second": float(lengths.sum())
        / _union_seconds(group.completions.span for group in groups),
        "perf/reference_tokens_per_second": _rate(report.padded_tokens, report, "reference"),
        "perf/gradient_tokens_per_second": _rate(
            report.padded_tokens * len(report.steps), report, "forward_backward"
        ),
        "perf/model_flops_utilisation": _utilisation(report, driver["update"]),
    }


def imitation_metrics(
    demonstrations: Sequence[ScoredPrompt],
    report: ImitationReport,
    refused: Mapping[str, int],
    spans: Sequence[Span],
) -> dict[str, float | None]:
    """Metrics of a supervised step: those of the names above that say something without rollouts and rewards."""
    lengths = np.array([completions.token_ids.size for _, completions in demonstrations])
    driver = {phase: _seconds(spans, "driver", phase) for phase in _DRIVER_PHASES if phase != "rollout"}
    step_seconds = _seconds(spans, "driver", "data") + driver["update"] + driver["weight_sync"] + driver["parity"]
    return {
        "completion/length_tokens_mean": float(lengths.mean()),
        "completion/length_tokens_max": float(lengths.max()),
        "loss/total": report.step.loss,
        "optim/grad_norm": report.step.grad_norm,
        "optim/learning_rate": report.step.learning_rate,
        "ledger/prompts_dropped": sum(refused.values()),
        "time/step_seconds": step_seconds,
        **{f"time/{phase}_seconds": seconds for phase, seconds in driver.items()},
        "perf/completions_per_second": len(demonstrations) / step_seconds,
        "perf/learner_tokens_per_second": report.padded_tokens / driver["update"],
        "perf/gradient_tokens_per_second": _rate(report.padded_tokens, report, "forward_backward"),
        "perf/model_flops_utilisation": _utilisation(report, driver["update"]),
    }


def _utilisation(report: UpdateReport | ImitationReport, seconds: float) -> float | None:
    return None if report.peak_flops is None else report.model_flops / seconds / report.peak_flops


def _idle_fraction(busy: Mapping[str, float], role: str, available_seconds: float) -> float | None:
    """At least 0: a request that began in the step before brings its seconds along. None where there is no actor."""
    return max(0.0, 1.0 - seconds_of(busy, role) / available_seconds) if available_seconds else None


def _rate(tokens: float, report: UpdateReport | ImitationReport, phase: str) -> float | None:
    """Tokens per second of one phase of the update; the ranks do it side by side. None where it did not happen."""
    seconds = _union_seconds(span for span in report.spans if span.phase == phase)
    return tokens / seconds if seconds else None


def _union_seconds(spans: Iterable[Span]) -> float:
    """Seconds that at least one of the spans covers."""
    total = until = 0.0
    for span in sorted(spans, key=lambda span: span.start_seconds):
        total += max(0.0, span.end_seconds - max(until, span.start_seconds))
        until = max(until, span.end_seconds)
    return total


def _seconds(spans: Iterable[Span], actor: str, phase: str) -> float:
    """Seconds of all phases whose actor and phase begin with these."""
    return sum(
        span.seconds for span in spans if span.actor.startswith(actor) and span.phase.startswith(phase)
    )
