"""The metrics of a step, computed by hand from its spans and groups."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from medr1_ray.learner.messages import Gap, ImitationReport, OptimizerStep, PolicyStatistics, UpdateReport
from medr1_ray.pool.actor_states import ActorCounts, ActorStage, ActorStates, Leave
from medr1_ray.pool.group_ledger import LedgerCounts
from medr1_ray.records.busy_time import BusyTime
from medr1_ray.records.metric_names import METRICS
from medr1_ray.records.metrics import PhaseSeconds, Resources, imitation_metrics, step_metrics
from medr1_ray.types import Span
from tests.unit.records.recorded import a_group


def test_seconds_are_the_drivers_by_phase_and_the_reward_actors_together() -> None:
    spans = [
        Span("driver", "rollout", 0.0, 4.0),
        Span("driver", "weight_sync", 4.0, 6.0),
        Span("driver", "rollout", 6.0, 7.0),
        Span("driver", "evaluation", 7.0, 20.0),
        Span("driver", "checkpoint", 20.0, 28.0),
        Span("reward-0", "reward", 1.0, 1.5),
        Span("reward-1", "reward", 1.0, 1.25),
        Span("rollout-0", "rollout", 0.0, 100.0),
        Span("learner-0", "reference", 0.0, 100.0),
    ]
    seconds = PhaseSeconds.of(spans)
    assert seconds == PhaseSeconds(
        rollout=5.0, data=0, update=0, weight_sync=2.0, parity=0, evaluation=13.0, checkpoint=8.0, reward=0.75
    )
    assert seconds.step == 7.0, "an evaluation or a checkpoint is no time of the step"
    assert PhaseSeconds(1, 2, 4, 8, 16, 32, 64, 128).step == 31
    assert PhaseSeconds(1, 2, 4, 8, 16, 32, 64, 128).metrics() == {
        "time/step_seconds": 31,
        "time/update_seconds": 4,
        "time/weight_sync_seconds": 8,
        "time/parity_seconds": 16,
        "time/evaluation_seconds": 32,
        "time/checkpoint_seconds": 64,
    }


def test_what_is_emitted_is_what_is_documented() -> None:
    statistics = PolicyStatistics(**{field.name: 1.0 for field in fields(PolicyStatistics)})
    spans = (
        Span("driver", "rollout", 0.0, 2.0),
        Span("driver", "update", 2.0, 3.0),
        Span("driver", "weight_sync", 3.0, 4.0),
        Span("reward-0", "reward", 1.0, 1.5),
        Span("rollout-0", "rollout", 0.0, 2.0),
        Span("rollout-1", "rollout", 0.0, 1.0),
    )
    # Two ranks: references overlap and cover 0.3 s, forward and backward passes cover 0.5 s.
    phases = (
        Span("learner-0", "reference", 2.0, 2.2),
        Span("learner-1", "reference", 2.1, 2.3),
        Span("learner-0", "forward_backward", 2.3, 2.8),
        Span("learner-1", "forward_backward", 2.4, 2.6),
    )
    step = OptimizerStep(0.1, 1.0, 1e-4)
    report = UpdateReport(6, (step,), statistics, 1, 0, 0, 4, 60, 1, 3e12, 1e13, phases)
    counts = LedgerCounts(issued=3, used=1, zero_variance=0, in_flight=1, dropped={"stale": 1}, reissued=1, late=1)
    members = ActorStates(lambda: 0.0, target=2).counts()
    resources = Resources(learner_ranks=2, rollout_actors=2, reward_actors=1, price_per_hour=9.0)
    busy = BusyTime().add([*spans, *phases])
    seconds = PhaseSeconds.of(spans)
    gap = Gap(0.05, 0.06, 9)
    metrics = step_metrics([a_group()], report, gap, counts, members, {"too long": 2}, 3, seconds, busy, resources)
    # Of 2 x 4 s the ranks work 0.7 and 0.4, and the rollout actors 3; of 4 s the reward actor 0.5. 4 s at 9 an hour
    # for one group is 0.01.
    assert metrics["perf/learner_idle_fraction"] == pytest.approx(1 - 1.1 / 8)
    assert metrics["perf/rollout_idle_fraction"] == 0.625
    assert metrics["perf/reward_idle_fraction"] == 0.875
    assert metrics["perf/cost_per_1000_groups"] == pytest.approx(10.0)
    # Evaluations are logged by themselves, and alarms follow from the metrics.
    evaluated = {name for name in METRICS if name.startswith(("eval/", "alarms/"))}
    assert metrics.keys() == METRICS.keys() - evaluated
    assert len(METRICS) <= 60
    assert metrics["perf/reference_tokens_per_second"] == pytest.approx(60 / 0.3)
    assert metrics["perf/gradient_tokens_per_second"] == pytest.approx(60 / 0.5)
    assert metrics["perf/model_flops_utilisation"] == pytest.approx(0.3)  # 3e12 in one second, of 1e13
    unknown = replace(report, peak_flops=None, spans=())
    nobody = Resources(learner_ranks=2, rollout_actors=0, reward_actors=1, price_per_hour=9.0)
    metrics = step_metrics([a_group()], report, gap, counts, members, {}, 3, seconds, busy, nobody)
    assert metrics["perf/rollout_idle_fraction"] is None, "all actors were lost in this step"
    group = a_group()
    back = replace(group.completions.span, end_seconds=group.completions.span.start_seconds - 5)
    back_in_time = replace(group, completions=replace(group.completions, span=back))
    metrics = step_metrics([back_in_time], report, gap, counts, members, {}, 3, seconds, busy, resources)
    assert metrics["perf/generation_tokens_per_second"] is None, "the clock was set back"
    metrics = step_metrics([a_group()], unknown, Gap(), counts, members, {}, 3, seconds, busy, resources)
    assert metrics["perf/model_flops_utilisation"] is None
    assert metrics["policy/logprob_gap_mean"] is metrics["policy/logprob_gap_max"] is None, "of no token"
    assert metrics["perf/reference_tokens_per_second"] is None


def test_every_metric_of_a_step_has_its_own_value() -> None:
    one = a_group()
    other = replace(
        one,
        completions=replace(
            one.completions,
            rollout_logprobs=-np.arange(1, 6, dtype=np.float32),
            versions=np.array([5, 5, 3, 6, 6], np.int32),
            lengths=np.array([2, 3], np.int32),
            truncated=np.array([False, False]),
            span=Span("rollout-1", "rollout", 1.5, 4.0),
        ),
        rewards=replace(
            one.rewards,
            total=np.array([1, 5], np.float32),
            correct=np.array([True, True]),
            well_formed=np.array([True, False]),
            answers=("B", "B"),
        ),
    )
    statistics = PolicyStatistics(1.5, 0.01, 0.02, 0.9, 0.03, 0.04, 8, 0.5, 0.6, 0.07)
    steps = (OptimizerStep(0.1, 1.0, 1e-4), OptimizerStep(0.3, 3.0, 2e-4))
    report = UpdateReport(8, steps, statistics, 4, 1, 0, 9, 60, 2, 3e12, 1e13, ())
    counts = LedgerCounts(
        issued=50, used=40, zero_variance=6, in_flight=7, dropped={"stale": 1, "other": 2}, reissued=8, late=9
    )
    at = dict.fromkeys(ActorStage, 0) | {ActorStage.SERVING: 4}
    gone = {Leave.DRAINED: 10, Leave.CANCELLED: 20, Leave.LOST: 2, Leave.FAILED: 1}
    members = ActorCounts(target=5, asked=37, at=at, gone=gone, failures_in_a_row=0)
    seconds = PhaseSeconds(
        rollout=2.0, data=0, update=3.0, weight_sync=1.0, parity=0.5, evaluation=7.0, checkpoint=9.0, reward=0.25
    )
    busy = {"learner-0": 2.6, "rollout-0": 5.2, "rollout-1": 1.3, "reward-0": 0.65}
    metrics = step_metrics(
        [one, other],
        report,
        Gap(0.05, 0.06, 9),
        counts,
        members,
        {"a": 2, "b": 1},
        3,
        seconds,
        busy,
        Resources(1, 2, 1, 7.2),
    )
    expected = {
        # Totals 2, 0, 1, 5 of two groups of two.
        "reward/total_mean": 2.0,
        "reward/total_std": math.sqrt(3.5),  # (0 + 4 + 1 + 9) / 4
        "reward/group_std_mean": 1.5 * math.sqrt(2),  # sqrt(2) and sqrt(8)
        "reward/accuracy_mean": 0.75,
        "reward/format_mean": 0.5,
        "reward/zero_variance_fraction": 0.25,
        # Lengths 3, 1, 2, 3: nine tokens.
        "completion/length_tokens_mean": 2.25,
        "completion/length_tokens_max": 3,
        "completion/truncated_fraction": 0.25,
        "completion/no_answer_fraction": 0.25,
        "policy/entropy": 15 / 9,
        "policy/ratio_max": 1.5,
        "policy/clip_low_fraction": 0.01,
        "policy/clip_high_fraction": 0.02,
        "policy/importance_mean": 0.9,
        "policy/importance_capped_fraction": 0.03,
        "policy/kl": 0.04,
        "policy/logprob_gap_mean": 0.05,
        "policy/logprob_gap_max": 0.06,
        "policy/version_drift": 0.07,
        "loss/total": 0.2,
        "optim/grad_norm": 2.0,
        "optim/learning_rate": 2e-4,
        "optim/steps_skipped": 3,
        # Version 8 after two steps: used at 6. Tokens of 4, 4, 5, 5 and 5, 5, 3, 6, 6.
        "staleness/mean": 11 / 9,
        "staleness/max": 3,
        "ledger/groups_issued": 50,
        "ledger/groups_used": 40,
        "ledger/groups_in_flight": 7,
        "ledger/groups_dropped": 3,
        "ledger/groups_zero_variance": 6,
        "ledger/groups_reissued": 8,
        "ledger/answers_late": 9,
        "ledger/prompts_dropped": 3,
        "pool/actors_wanted": 5,
        "pool/actors_serving": 4,
        "pool/actors_lost": 3,
        "time/step_seconds": 6.5,
        "time/rollout_seconds": 2.0,
        "time/reward_seconds": 0.25,
        "time/update_seconds": 3.0,
        "time/weight_sync_seconds": 1.0,
        "time/parity_seconds": 0.5,
        "time/evaluation_seconds": 7.0,
        "time/checkpoint_seconds": 9.0,
        "perf/learner_idle_fraction": 0.6,  # 2.6 of 6.5 s at work
        "perf/rollout_idle_fraction": 0.5,  # 6.5 of 13 s
        "perf/reward_idle_fraction": 0.9,
        "perf/cost_per_1000_groups": 6.5,  # 6.5 s at 0.002 a second, for two groups
        "perf/completions_per_second": 4 / 6.5,
        "perf/rollout_tokens_per_second": 9 / 6.5,
        "perf/learner_tokens_per_second": 20.0,  # 60 in 3 s
        "perf/generation_tokens_per_second": 3.0,  # 9 in the 3 s from 1 to 4
        "perf/reference_tokens_per_second": None,
        "perf/gradient_tokens_per_second": None,
        "perf/model_flops_utilisation": 0.1,  # 3e12 in 3 s, of 1e13
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == (None if value is None else pytest.approx(value)), name
    passes = (Span("learner-0", "forward_backward", 0.0, 0.5),)
    report, free = replace(report, spans=passes), Resources(1, 2, 1, None)
    metrics = step_metrics([one, other], report, Gap(), counts, members, {}, 3, seconds, busy, free)
    assert metrics["perf/gradient_tokens_per_second"] == 240.0  # 60 in each of two steps, in 0.5 s
    assert metrics["perf/cost_per_1000_groups"] is None


def test_a_supervised_step_emits_what_is_documented() -> None:
    spans = (
        Span("driver", "data", 0.0, 0.5),
        Span("driver", "update", 0.5, 2.0),
        Span("driver", "weight_sync", 2.0, 3.0),
        Span("driver", "evaluation", 3.0, 9.0),
    )
    group = a_group()
    pairs = [(group.prompt, group.completions)] * 3
    report = ImitationReport(6, OptimizerStep(0.25, 1.0, 1e-4), 12, 60, 3e12, 1e13, spans)
    metrics = imitation_metrics(pairs, report, {"too long": 2}, 3, PhaseSeconds.of(spans))
    assert metrics.keys() <= METRICS.keys()
    assert (metrics["loss/total"], metrics["ledger/prompts_dropped"]) == (0.25, 2)
    assert (metrics["time/step_seconds"], metrics["perf/completions_per_second"]) == (3.0, 1.0)
    assert metrics["perf/learner_tokens_per_second"] == 40.0  # 60 in 1.5 s
    assert metrics["perf/model_flops_utilisation"] == pytest.approx(0.2)  # 3e12 in 1.5 s, of 1e13
    assert (metrics["optim/grad_norm"], metrics["optim/learning_rate"]) == (1.0, 1e-4)
    assert metrics["optim/steps_skipped"] == 3
    assert metrics["completion/length_tokens_mean"] == metrics["completion/length_tokens_max"] == 4
