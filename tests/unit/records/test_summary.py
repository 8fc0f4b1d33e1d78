"""`summary.json`: what is in it, from sums over the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.base.code_digest import code_digest
from medr1_ray.evaluation.in_training import Evaluation, EvaluationLog
from medr1_ray.learner.messages import Gap
from medr1_ray.pool.actor_states import ActorStates, Leave
from medr1_ray.pool.group_ledger import LedgerCounts
from medr1_ray.records.summary import Totals, summarise
from medr1_ray.records.terminal import describe_summary
from tests.unit.records.recorded import a_config


@pytest.fixture
def evaluations(tmp_path: Path) -> EvaluationLog:
    log = EvaluationLog(tmp_path, print)
    for name, accuracy in (("before", 0.25), ("after", 0.75), ("blank_image", 0.3), ("shuffled_image", 0.2)):
        log.add(name, 0, Evaluation(accuracy, 0.5, 8, {"CT": accuracy}, {}), [])
    return log


COUNTS = LedgerCounts(
    issued=30, used=24, zero_variance=5, in_flight=2, dropped={"stale": 3, "zero_variance": 1}, reissued=6, late=7
)


def test_the_throughput_counts_the_seconds_of_the_loop_alone(tmp_path: Path, evaluations: EvaluationLog) -> None:
    members = ActorStates(lambda: 0.0, target=1)
    members.ask()
    members.leave(members.ask(), Leave.LOST)
    phases = {"rollout": 4.0, "update": 3.0, "weight_sync": 2.0, "parity": 0.5, "data": 0.5}
    outside = {"startup": 100.0, "evaluation": 50.0, "checkpoint": 40.0}
    totals = Totals(200, phases | outside, Gap(2e-6, 3e-4, 1000))
    summary = summarise(a_config(tmp_path), 3, evaluations, totals, 2, COUNTS, members.counts())
    assert (summary["completions"], summary["steps_skipped"]) == (200, 2)
    assert summary["completions_per_second"] == 20.0  # 200 in 4 + 3 + 2 + 0.5 + 0.5 s
    assert summary["seconds"] == {"total": 200.0, **phases, **outside}
    assert (summary["steps"], summary["objective"], summary["mode"]) == (3, "grpo", "no_think")
    assert (summary["eval"]["before"]["accuracy"], summary["eval"]["after"]["accuracy"]) == (0.25, 0.75)
    assert (summary["eval"]["blank_image"], summary["eval"]["shuffled_image"]) == (0.3, 0.2)
    assert summary["eval"]["after"]["by_modality"] == {"CT": 0.75}
    assert (summary["logprob_gap_mean"], summary["logprob_gap_max"]) == (2e-6, 3e-4)
    counted = ("groups_issued", "groups_used", "groups_zero_variance", "groups_dropped", "groups_reissued")
    assert [summary[key] for key in (*counted, "answers_late")] == [30, 24, 5, 4, 6, 7]
    assert summary["groups_dropped_by_reason"] == {"stale": 3, "zero_variance": 1}
    assert summary["rollout_actors"] == {"asked": 2, "drained": 0, "cancelled": 0, "lost": 1, "failed": 0}
    assert summary["code_digest"] == code_digest()


def test_a_run_without_exchanged_images_has_a_summary(tmp_path: Path, evaluations: EvaluationLog) -> None:
    (tmp_path / "shuffled_image.json").unlink()
    members = ActorStates(lambda: 0.0, target=1).counts()
    summary = summarise(a_config(tmp_path), 0, evaluations, Totals(), 2, COUNTS, members)
    assert (summary["eval"]["blank_image"], summary["eval"]["shuffled_image"]) == (0.3, None)
    assert "another question's image left out" in describe_summary(summary)


def test_phases_that_did_not_occur_are_zero(tmp_path: Path, evaluations: EvaluationLog) -> None:
    members = ActorStates(lambda: 0.0, target=1).counts()
    summary = summarise(a_config(tmp_path), 0, evaluations, Totals(), 2, COUNTS, members)
    assert summary["completions_per_second"] == 0.0
    assert summary["seconds"] == {"total": 0, "rollout": 0, "update": 0, "weight_sync": 0, "evaluation": 0}
