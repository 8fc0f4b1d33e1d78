"""The metrics of one step, under the names documented in `metric_names.METRICS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from medr1_ray.config import Config
from medr1_ray.learner.messages import Gap, ImitationReport, UpdateReport
from medr1_ray.pool.actor_states import ActorCounts
from medr1_ray.pool.group_ledger import LedgerCounts
from medr1_ray.records.busy_time import seconds_of
from medr1_ray.types import CompletedPrompt, Group, Span


@dataclass(frozen=True)
class PhaseSeconds:
    """Seconds of a step by the driver's phase, and of the reward actors together (`reward`)."""

    rollout: float
    data: float
    update: float
    weight_sync: float
    parity: float
    evaluation: float
    checkpoint: float
    reward: float

    @classmethod
    def of(cls, spans: Sequence[Span]) -> PhaseSeconds:
        """From all spans since the step before."""
        phases = [field.name for field in fields(cls) if field.name != "reward"]
        return cls(
            **{phase: _seconds(spans, "driver", phase) for phase in phases}, reward=_seconds(spans, "reward", "")
        )

    @property
    def step(self) -> float:
        """The step itself, without evaluations and checkpoints; a supervised step reads data instead of rolling out."""
        return self.rollout + self.data + self.update + self.weight_sync + self.parity

    def metrics(self) -> dict[str, float | None]:
        """The metrics of the family `time` that every kind of step has."""
        return {
            "time/step_seconds": self.step,
            "time/update_seconds": self.update,
            "time/weight_sync_seconds": self.weight_sync,
            "time/parity_seconds": self.parity,
            "time/evaluation_seconds": self.evaluation,
            "time/checkpoint_seconds": self.checkpoint,
        }


@dataclass(frozen=True)
class Resources:
    """The devices of a step; `price_per_hour` is the total, None where a price is unknown."""

    learner_ranks: int
    rollout_actors: int
    reward_actors: int
    price_per_hour: float | None

    @classmethod
    def of(cls, config: Config, rollout_actors: int) -> Resources:
        """Those of a run with so many rollout actors now; a process without a GPU counts as one device."""
        learner, rollout = config.learner, config.rollout
        price = config.hardware.price_per_hour(
            learner.world_size * (learner.gpus_per_rank or 1), rollout_actors * (rollout.gpus_per_actor or 1)
        )
        return cls(learner.world_size, rollout_actors, config.reward.actors, price)


def step_metrics(
    groups: Sequence[Group],
    report: UpdateReport,
    gap: Gap,
    counts: LedgerCounts,
    members: ActorCounts,
    refused: Mapping[str, int],
    steps_skipped: int,
    seconds: PhaseSeconds,
    busy: Mapping[str, float],
    resources: Resources,
) -> dict[str, float | None]:
    """Metrics of the step of `report`; None where there was nothing to measure.

    `gap` is that of the step, the parity gate's tokens included; `refused` counts questions that could not become
    prompts, by reason; `seconds` are those since the step before, and `busy` each actor's busy seconds among them.
    """
    lengths = np.concatenate([group.completions.lengths for group in groups])
    # At the time of use: `report.version` is already the version after the update.
    staleness = report.version - len(report.steps) - np.concatenate([g.completions.versions for g in groups])
    statistics = report.statistics
    return {
        **reward_metrics(groups),
        "reward/zero_variance_fraction": report.groups_zero_variance / report.groups,
        "completion/length_tokens_mean": float(lengths.mean()),
        "completion/length_tokens_max": float(lengths.max()),
        "completion/truncated_fraction": float(np.mean([g.completions.truncated.mean() for g in groups])),
        "completion/no_answer_fraction": float(
            np.mean([answer is None for group in groups for answer in group.rewards.answers])
        ),
        # Over all completions of the step: the groups that skip the learner are the most certain ones.
        "policy/entropy": -float(
            np.concatenate([group.completions.rollout_logprobs for group in groups]).mean()
        ),
        "policy/ratio_max": statistics.ratio_max,
        "policy/clip_low_fraction": statistics.clip_low_fraction,
        "policy/clip_high_fraction": statistics.clip_high_fraction,
        "policy/importance_mean": statistics.importance_mean,
        "policy/importance_capped_fraction": statistics.importance_capped_fraction,
        "policy/kl": statistics.kl,
        "policy/logprob_gap_mean": gap.mean if gap.tokens else None,
        "policy/logprob_gap_max": gap.max if gap.tokens else None,
        "policy/version_drift": statistics.version_drift,
        "loss/total": float(np.mean([step.loss for step in report.steps])),
        "optim/grad_norm": float(np.mean([step.grad_norm for step in report.steps])),
        "optim/learning_rate": report.steps[-1].learning_rate,
        "optim/steps_skipped": steps_skipped,
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
        "time/rollout_seconds": seconds.rollout,
        "time/reward_seconds": seconds.reward,
        **seconds.metrics(),
        "perf/learner_idle_fraction": _idle_fraction(busy, "learner-", resources.learner_ranks * seconds.step),
        "perf/rollout_idle_fraction": _idle_fraction(busy, "rollout-", resources.rollout_actors * seconds.step),
        "perf/reward_idle_fraction": _idle_fraction(busy, "reward-", resources.reward_actors * seconds.step),
        "perf/cost_per_1000_groups": None
        if resources.price_per_hour is None
        else resources.price_per_hour * seconds.step / 3600 * 1000 / len(groups),
        "perf/completions_per_second": lengths.size / seconds.step,
        "perf/rollout_tokens_per_second": float(lengths.sum()) / seconds.step,
        "perf/learner_tokens_per_second": report.padded_tokens / seconds.update,
        # Groups are generated side by side, so their seconds must not be added up.
        "perf/generation_tokens_per_second": _over(
            float(lengths.sum()), _union_seconds(group.completions.span for group in groups)
        ),
        "perf/reference_tokens_per_second": _rate(report.padded_tokens, report, "reference"),
        "perf/gradient_tokens_per_second": _rate(
            report.padded_tokens * report.passes, report, "forward_backward"
        ),
        "perf/model_flops_utilisation": _utilisation(report, seconds.update),
    }


def reward_metrics(groups: Sequence[Group]) -> dict[str, float | None]:
    """Metrics of the rewards alone, which need no update."""
    totals = np.concatenate([group.rewards.total for group in groups])
    return {
        "reward/total_mean": float(totals.mean()),
        "reward/total_std": float(totals.std()),
        "reward/group_std_mean": float(np.mean([group.rewards.total.std(ddof=1) for group in groups])),
        "reward/accuracy_mean": float(np.mean([group.rewards.correct.mean() for group in groups])),
        "reward/format_mean": float(np.mean([group.rewards.well_formed.mean() for group in groups])),
    }


def imitation_metrics(
    demonstrations: Sequence[CompletedPrompt],
    report: ImitationReport,
    refused: Mapping[str, int],
    steps_skipped: int,
    seconds: PhaseSeconds,
) -> dict[str, float | None]:
    """Metrics of a supervised step: those that have a meaning without rollouts and rewards."""
    lengths = np.array([completions.token_ids.size for _, completions in demonstrations])
    return {
        "completion/length_tokens_mean": float(lengths.mean()),
        "completion/length_tokens_max": float(lengths.max()),
        "loss/total": report.step.loss,
        "optim/grad_norm": report.step.grad_norm,
        "optim/learning_rate": report.step.learning_rate,
        "optim/steps_skipped": steps_skipped,
        "ledger/prompts_dropped": sum(refused.values()),
        **seconds.metrics(),
        "perf/completions_per_second": len(demonstrations) / seconds.step,
        "perf/learner_tokens_per_second": report.padded_tokens / seconds.update,
        "perf/gradient_tokens_per_second": _rate(report.padded_tokens, report, "forward_backward"),
        "perf/model_flops_utilisation": _utilisation(report, seconds.update),
    }


def _utilisation(report: UpdateReport | ImitationReport, update_seconds: float) -> float | None:
    return None if report.peak_flops is None else report.model_flops / update_seconds / report.peak_flops


def _idle_fraction(busy: Mapping[str, float], role: str, available_seconds: float) -> float | None:
    """Idle share, at least 0 (a request that began in the step before counts in full); None where there is no actor."""
    return max(0.0, 1.0 - seconds_of(busy, role) / available_seconds) if available_seconds else None


def _rate(tokens: float, report: UpdateReport | ImitationReport, phase: str) -> float | None:
    """Tokens per second of one phase of the update, all ranks together; None where the phase did not occur."""
    return _over(tokens, _union_seconds(span for span in report.spans if span.phase == phase))


def _over(tokens: float, seconds: float) -> float | None:
    """None where no time passed: the phase did not occur, or the clock was set back in it."""
    return tokens / seconds if seconds > 0 else None


def _union_seconds(spans: Iterable[Span]) -> float:
    """Seconds that at least one of the spans covers."""
    total = until = 0.0
    for span in sorted(spans, key=lambda span: span.start_seconds):
        total += max(0.0, span.end_seconds - max(until, span.start_seconds))
        until = max(until, span.end_seconds)
    return total


def _seconds(spans: Iterable[Span], actor: str, phase: str) -> float:
    """Total seconds of the spans whose actor and phase begin with these."""
    return sum(
        span.seconds for span in spans if span.actor.startswith(actor) and span.phase.startswith(phase)
    )
