"""A real training, with real engines, whose rollout nodes are killed, drained and added while it runs."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

REPOSITORY = Path(__file__).parents[2]
STAGED = Path("/dev/shm") / f"medr1_ray-{os.getuid()}"


class Training:
    """`python -m medr1_ray.train` on a cluster, and the lines that it prints."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-u", "-m", "medr1_ray.train", "--config", "configs/phantom_cpu.yaml", *arguments]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put("")

    def until(self, pattern: str, timeout: float = 180.0) -> str:
        """The next line with this pattern."""
        end = time.monotonic() + timeout
        while True:
            line = self._queue.get(timeout=max(0.1, end - time.monotonic()))
            assert line, "the run ended: " + "".join(self.lines)
            self.lines.append(line)
            if re.search(pattern, line):
                return line


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head for the learner and the reward actor, and two nodes for rollout actors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        head = {"num_cpus": 2, "labels": {"role": "head"}, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, labels={"role": "rollout"})
        yield cluster
        cluster.shutdown()


def engine_process(run: Path, name: str) -> int:
    """The process of an actor's engine, from the actor's log."""
    log = (run / "logs" / f"{name}.log").read_text()
    return int(re.findall(r"EngineCore pid=(\d+)", log)[-1])


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def drain(cluster: Cluster, run: Path, name: str) -> None:
    """Give a preemption notice to the node on which this actor runs."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    pid = engine_process(run, name)
    while pid not in raylets:
        pid = parent(pid)
    command = ["ray", "drain-node", f"--address={cluster.address}", f"--node-id={raylets[pid].node_id}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60"]
    subprocess.run(command, check=True, capture_output=True)


def test_a_training_goes_on_while_its_rollout_actors_come_and_go(cluster: Cluster, tmp_path: Path) -> None:
    """An engine killed in mid-sync, a preemption notice, an actor killed; a replacement after each: six changes."""
    run = tmp_path / "run"
    labels = "{learner: {role: head}, reward: {role: head}, rollout: {role: rollout}}"
    training = Training(
        f"run.dir={run}",
        f"data.root={tmp_path / 'phantoms'}",
        "data.phantom_images=120",
        "data.eval_questions=40",
        "train.steps=20000",
        "train.prompts_per_step=8",
        "train.group_size=4",
        "rollout.min_actors=1",
        "rollout.scale_every=1000000",  # Who comes and goes here is the test's affair.
        "run.save_every=5",
        "cluster.sync_timeout_seconds=20",  # vLLM leaves the call of an engine killed in mid-sync without an answer.
        f"cluster.address={cluster.address}",
        f"cluster.labels={labels}",
    )
    try:
        training.until(r"^step ")

        engine = engine_process(run, "rollout-0")
        while not list(STAGED.glob("*.weights")):  # There as long as an engine loads them.
            time.sleep(0.001)
        os.kill(engine, signal.SIGKILL)
        training.until(r"rollout-0 is gone")
        training.until(r"rollout-2 has joined")

        cluster.add_node(num_cpus=1, labels={"role": "rollout"})
        drain(cluster, run, "rollout-1")
        training.until(r"rollout-1 drains: its node is to go")
        training.until(r"rollout-1 is gone \(drained\)")
        training.until(r"rollout-3 has joined")

        os.kill(parent(engine_process(run, "rollout-2")), signal.SIGKILL)
        training.until(r"rollout-2 is gone \(lost\)")
        training.until(r"rollout-4 has joined.*2 of 2 serve")
        training.until(r"^step ")
    finally:
        training.process.send_signal(signal.SIGINT)
        training.process.wait(60)

    steps: list[dict[str, Any]] = [
        line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "ledger/groups_issued" in line
    ]
    for step in steps:
        ended = step["ledger/groups_used"] + step["ledger/groups_dropped"] + step["ledger/groups_in_flight"]
        assert step["ledger/groups_issued"] == ended
        assert step["policy/logprob_gap_mean"] < 1e-3, "what a new actor samples is of the learner's weights"
    assert steps[-1]["ledger/groups_used"] == 8 * steps[-1]["step"], "no step went without its groups"
    assert steps[-1]["pool/actors_lost"] == 2
    assert max(step["time/step_seconds"] for step in steps) < 60, "no step waited for an engine to start"
