"""The elastic pool on a cluster of several nodes, with fake engines: what a run does when actors come and go.

The nodes are processes of this machine (`ray.cluster_utils.Cluster`); each run is a process of its own, which tells
what happens to it in lines of JSON.
"""

from __future__ import annotations

import json
import queue
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

SIMULATION = Path(__file__).with_name("simulated_run.py")
SLOTS = {"engine": {"max_num_seqs": 16}}  # 4 groups of 4 at once
STEP = {"prompts_per_step": 16, "group_size": 4}
DEADLINES = {"placement_timeout_seconds": 20, "start_timeout_seconds": 60, "sync_timeout_seconds": 60}


class Run:
    """A simulated run and the lines it has written."""

    def __init__(self, address: str, *, cluster: dict[str, Any] | None = None, **arguments: Any) -> None:
        settings = {**arguments.pop("settings"), "cluster": {"address": address, **DEADLINES, **(cluster or {})}}
        command = [sys.executable, str(SIMULATION), json.dumps({"settings": settings, **arguments})]
        self.lines: list[dict[str, Any]] = []
        self._queue: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put("")

    def until(self, event: str, timeout: float = 60.0, **values: Any) -> dict[str, Any]:
        """The next line of this event with these values; fails when the run ends before."""
        end = time.monotonic() + timeout
        while True:
            text = self._queue.get(timeout=max(0.1, end - time.monotonic()))
            if not text.startswith("{"):
                assert text, f"the run ended without {event} {values}: {self.said()}"
                continue
            line = json.loads(text)
            self.lines.append(line)
            if line["event"] == event and all(line[key] == value for key, value in values.items()):
                return line
            assert line["event"] != "error", line["text"]

    def finish(self) -> dict[str, Any]:
        return self.until("end")

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == "step"]

    def said(self) -> list[str]:
        return [line["text"] for line in self.lines if line["event"] in ("say", "error")]


@pytest.fixture(scope="module", autouse=True)
def no_authentication() -> Iterator[None]:
    """These tests are not about it, and the nodes take the mode from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head for reward actors, without room for rollout actors, and one node."""
    head = {"num_cpus": 1, "labels": {"role": "head"}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, labels={"role": "rollout"})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Any]:
    """`nodes(n)`: have n rollout nodes."""

    def have(count: int) -> list[Any]:
        while len(cluster.worker_nodes) < count:
            cluster.add_node(num_cpus=1, labels={"role": "rollout"})
        while len(cluster.worker_nodes) > count:
            cluster.remove_node(next(iter(cluster.worker_nodes)))
        return list(cluster.worker_nodes)

    yield have
    have(1)


LABELS = {"labels": {"rollout": {"role": "rollout"}, "reward": {"role": "head"}}}


def books_add_up(line: dict[str, Any]) -> bool:
    ledger = line["ledger"]
    return bool(ledger["issued"] == ledger["used"] + sum(ledger["dropped"].values()) + ledger["in_flight"])


def test_throughput_follows_the_number_of_actors(cluster: Cluster, nodes: Any) -> None:
    nodes(4)
    run = Run(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 9, **STEP}, "rollout": {"actors": 1, "max_actors": 4, **SLOTS}},
        behaviour={"group_seconds": 1.0},
        targets={"3": 2, "6": 4},
    )
    run.finish()
    # 16 groups, 4 at once on each actor, 1 second each: 4, 2 and 1 seconds.
    for expected, steps in ((4.0, (0, 1, 2)), (2.0, (3, 4, 5)), (1.0, (6, 7, 8))):
        fastest = min(run.steps()[step]["rollout_seconds"] for step in steps)
        assert expected <= fastest < 1.1 * expected


def test_a_run_outlives_the_loss_of_actors_and_nodes(cluster: Cluster, nodes: Any) -> None:
    """Six changes: one dies and one hangs in mid-sync, one holds other bytes, a node is removed, added and drained."""
    first = set(nodes(3))
    run = Run(
        cluster.address,
        cluster={**LABELS, "sync_timeout_seconds": 3},
        settings={"train": {"steps": 40, **STEP}, "rollout": {"actors": 3, "min_actors": 2, **SLOTS}},
        behaviour={"group_seconds": 0.3},
        special={"0": {"dies_loading": 2}, "1": {"hangs_loading": 5}, "2": {"wrong_digest": 8}},
        update_seconds=0.05,
    )
    run.until("step", step=10)
    cluster.remove_node(first.pop(), allow_graceful=False)
    run.until("step", step=14)
    nodes(3)
    run.until("step", step=18)
    drained = first.pop()
    command = ["ray", "drain-node", f"--address={cluster.address}", f"--node-id={drained.node_id}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=30"]
    subprocess.run(command, check=True, capture_output=True)
    end = run.finish()

    assert all(books_add_up(line) for line in run.steps())
    last = run.steps()[-1]["ledger"]
    assert last["used"] == 40 * 16
    assert last["reissued"] > 0, "groups of the removed node were issued again"
    assert max(line["sync_seconds"] for line in run.steps()) < 3 + 3, "no sync waits beyond its deadline"
    said = "\n".join(run.said())
    assert "rollout-1 is gone (lost): it did not load version 5 within cluster.sync_timeout_seconds=3" in said
    assert "rollout-2 is gone (failed): it holds version 8 with digest 0000" in said
    assert "drains: its node is to go" in said
    assert end["gone"]["lost"] == 3
    assert end["gone"]["failed"] == 1
    assert end["gone"]["drained"] == 1
    assert end["asked"] >= 8, "each was replaced, and the last of them waits for a node"


def test_the_end_of_the_last_actor_is_an_error_after_a_deadline(cluster: Cluster, nodes: Any) -> None:
    nodes(1)
    run = Run(
        cluster.address,
        cluster={**LABELS, "placement_timeout_seconds": 2, "start_timeout_seconds": 8},
        settings={"train": {"steps": 1000, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={"group_seconds": 0.1},
    )
    run.until("step", step=1)
    nodes(0)
    message = r"no rollout actor has been serving for \d+ s.*1 x \(1 CPU\) on nodes labelled"
    with pytest.raises(AssertionError, match=message):
        run.finish()


def test_what_can_never_fit_fails_at_once(cluster: Cluster, nodes: Any) -> None:
    nodes(1)
    run = Run(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 1, **STEP}, "rollout": {"actors": 3, "min_actors": 2, **SLOTS}},
        behaviour={},
    )
    with pytest.raises(AssertionError, match=r"needs 2 x \(1 CPU\) on nodes labelled role=rollout .* have room for 1"):
        run.finish()


def test_what_fits_but_is_taken_fails_at_a_deadline_and_says_what_is_missing(cluster: Cluster, nodes: Any) -> None:
    nodes(1)
    first = Run(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 1000, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={"group_seconds": 0.1},
    )
    first.until("step", step=0)
    second = Run(
        cluster.address,
        cluster={**LABELS, "placement_timeout_seconds": 1},
        settings={"train": {"steps": 1, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={},
    )
    with pytest.raises(AssertionError, match=r"no place for rollout-0 after .*=1: it needs 1 x \(1 CPU\) on nodes"):
        second.finish()
    first.process.send_signal(signal.SIGINT)
    first.process.wait(20)


def test_wrong_code_ends_a_run_before_it_begins(cluster: Cluster, nodes: Any) -> None:
    nodes(1)
    run = Run(
        cluster.address,
        cluster={**LABELS, "sync_timeout_seconds": 2},
        settings={"train": {"steps": 1, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={"wrong_digest": 0},
    )
    with pytest.raises(AssertionError, match=r"rollout-0 did not start: it holds version 0 with digest 000"):
        run.finish()
