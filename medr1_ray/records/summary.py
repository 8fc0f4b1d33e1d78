"""`summary.json`: the results of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from medr1_ray.base.code_digest import code_digest
from medr1_ray.config import Config
from medr1_ray.evaluation.in_training import Evaluation, EvaluationLog
from medr1_ray.learner.messages import Gap
from medr1_ray.pool.actor_states import ActorCounts
from medr1_ray.pool.group_ledger import LedgerCounts

# The phases that count for the throughput; start-up, evaluation and checkpoints do not.
_LOOP_PHASES = ("rollout", "data", "update", "weight_sync", "parity")


@dataclass
class Totals:
    """Sums over a run and all its resumptions: completions used, seconds by phase of the driver, and the gap.

    `actors` is the tally of the rollout actors of the starts before this one, in a checkpoint that of all so far.
    """

    completions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    gap: Gap = field(default_factory=Gap)
    actors: dict[str, int] = field(default_factory=dict)


def summarise(
    config: Config,
    step: int,
    evaluations: EvaluationLog,
    totals: Totals,
    steps_skipped: int,
    counts: LedgerCounts,
    members: ActorCounts,
) -> dict[str, Any]:
    """The content of `summary.json`; accuracies are fractions, times seconds, gaps nats."""
    loop_seconds = sum(totals.seconds.get(phase, 0.0) for phase in _LOOP_PHASES)
    # None where its file is gone.
    before = evaluations.before()
    # There is none if most questions share one image.
    shuffled = evaluations.find("shuffled_image")
    return {
        "steps": step,
        "objective": config.objective,
        "mode": config.mode,
        "eval": {
            "before": None if before is None else asdict(before),
            "after": asdict(_found(evaluations, "after")),
            "blank_image": _found(evaluations, "blank_image").accuracy,
            "shuffled_image": None if shuffled is None else shuffled.accuracy,
        },
        "steps_skipped": steps_skipped,
        "completions": totals.completions,
        "completions_per_second": totals.completions / loop_seconds if loop_seconds else 0.0,
        "seconds": {
            "total": sum(totals.seconds.values()),
            # These are always there, even if such a phase never ran: `describe_summary` reads them.
            **{phase: totals.seconds.get(phase, 0.0) for phase in ("rollout", "update", "weight_sync", "evaluation")},
            **totals.seconds,
        },
        "logprob_gap_mean": totals.gap.mean,
        "logprob_gap_max": totals.gap.max,
        "groups_issued": counts.issued,
        "groups_used": counts.used,
        "groups_zero_variance": counts.zero_variance,
        "groups_dropped": counts.dropped_total,
        "groups_dropped_by_reason": counts.dropped,
        "groups_reissued": counts.reissued,
        "answers_late": counts.late,
        "rollout_actors": members.tally(),
        "code_digest": code_digest(),
    }


def _found(evaluations: EvaluationLog, name: str) -> Evaluation:
    evaluation = evaluations.find(name)
    assert evaluation is not None, name
    return evaluation
