"""A real training, with real engines, whose rollout nodes are killed, drained and added while it runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from benchmarks.churn import (
    Training,
    drain,
    engine_process,
    kill_in_mid_sync,
    parent,
    preempt,
    rollout_cluster,
    steps_of,
)
from tests.faults.processes import PATIENCE, end


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        with rollout_cluster() as cluster:
            yield cluster


def test_a_training_goes_on_while_its_rollout_actors_come_and_go(cluster: Cluster, tmp_path: Path) -> None:
    """An engine killed in mid-sync, a preemption notice, an actor killed; a replacement after each: six changes. At the
    end a notice for the driver's node."""
    run = tmp_path / "run"
    training = Training(
        "configs/phantom_cpu.yaml",
        cluster.address,
        f"run.dir={run}",
        f"data.root={tmp_path / 'phantoms'}",
        "data.phantom_images=120",
        "data.eval_questions=40",
        "train.steps=20000",
        "train.prompts_per_step=8",
        "train.group_size=4",
        "rollout.min_actors=1",
        "rollout.cpus_per_actor=1",  # one actor per node
        "rollout.scale_every=1000000",  # Who comes and goes here is the test's affair.
        "run.save_every=5",
    )
    try:
        training.until(r"^step ")
        kill_in_mid_sync(training, run, "rollout-0")
        training.until(r"rollout-0 is gone")
        training.until(r"rollout-2 has joined")

        cluster.add_node(num_cpus=1, labels={"role": "rollout"})
        preempt(cluster, run, "rollout-1")
        training.until(r"rollout-1 is draining: its node is about to go away")
        training.until(r"rollout-1 is gone \(drained\)", r"rollout-3 has joined")

        os.kill(parent(engine_process(run, "rollout-2")), signal.SIGKILL)
        training.until(r"rollout-2 is gone \(lost\)")
        training.until(r"rollout-4 has joined.*2 of 2 serving")
        training.until(r"^step ")

        drain(cluster, cluster.head_node)
        by = r"by Ray, which drains the driver's node \(\d+ s left\)"
        training.until(rf"^stopping as asked {by}: after an update")
        saved = training.until(rf"^stopped {by}: .* is saved; go on with")
        assert training.process.wait(PATIENCE) == 128 + signal.SIGTERM
    finally:
        end(training.process)

    steps = steps_of(run)
    assert f"checkpoint-{steps[-1]['step']} is saved" in saved, "nothing that was learned is lost"
    for step in steps:
        assert step["policy/logprob_gap_mean"] < 1e-3, "what a new actor samples is of the learner's weights"
    assert steps[-1]["ledger/groups_used"] == 8 * steps[-1]["step"], "no step went without its groups"
    assert steps[-1]["pool/actors_lost"] == 2
    assert any(step["pool/actors_serving"] == 1 for step in steps), "no step waited for an engine to start"
