"""The elastic pool on a cluster of several nodes, with fake engines: what a run does when actors come and go.

The nodes are processes of this machine (`ray.cluster_utils.Cluster`); each run is a process of its own, which tells
what happens to it in lines of JSON.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from medr1_ray.cluster.ports import free_port
from tests.faults.processes import PATIENCE
from tests.integration.pool.process_nodes import HEAD_ID, OWN_PORTS, cluster_settings
from tests.integration.pool.simulation import SLOTS, STEP, SimulatedRun
from tests.repository import REPOSITORY

Simulate = Callable[..., SimulatedRun]


@pytest.fixture(scope="module", autouse=True)
def no_authentication() -> Iterator[None]:
    """These tests are not about it, and the nodes take the mode from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head for what a learner and reward actors need; `nodes` adds those for rollout actors."""
    head = {"num_cpus": 2, "labels": {"role": "head"}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Any]:
    """`nodes(n)`: have n rollout nodes, of which none is left to the next test: it may drain."""

    def have(count: int) -> list[Any]:
        while len(cluster.worker_nodes) < count:
            cluster.add_node(wait=False, num_cpus=1, labels={"role": "rollout"})
        while len(cluster.worker_nodes) > count:
            cluster.remove_node(next(iter(cluster.worker_nodes)))
        cluster.wait_for_nodes(PATIENCE)
        return list(cluster.worker_nodes)

    yield have
    have(0)


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Starts simulated runs, which end with the test."""
    runs: list[SimulatedRun] = []

    def start(*arguments: Any, **named: Any) -> SimulatedRun:
        runs.append(SimulatedRun(*arguments, **named))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()


def kill_node(cluster: Cluster, node: Any) -> None:
    """End a node as a power cut would: all of its processes stop at the same moment."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    workers = raylet.children(recursive=True)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):  # an idle worker may end at any time
            worker.suspend()
    cluster.remove_node(node, allow_graceful=False)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


LABELS = {"labels": {"learner": {"role": "head"}, "reward": {"role": "head"}, "rollout": {"role": "rollout"}}}


def test_throughput_follows_the_number_of_actors(cluster: Cluster, nodes: Any, simulate: Simulate) -> None:
    nodes(4)
    run = simulate(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 10_000, **STEP}, "rollout": {"actors": 1, "max_actors": 4, **SLOTS}},
        behaviour={"group_seconds": 1.0},
        measured=False,
    )
    # 16 groups, 4 at once on each actor. How long that takes is the machine's affair (benchmarks/scale.py measures it),
    # and so is whether the last of a step begins before the first is done: some step shows it.
    for actors in (1, 2, 4):
        run.tell(f"actors {actors}")
        run.until("step", target=actors, at_once=4 * actors)
    run.tell("stop")
    run.finish()
    for line in run.steps():
        assert line["at_once"] <= 4 * line["target"]
        assert len(line["actors"]) == line["target"], "each has its part"


def test_a_run_outlives_the_loss_of_actors_and_nodes(
    cluster: Cluster, nodes: Any, simulate: Simulate
) -> None:
    """One dies and one hangs in mid-sync, one holds other bytes, a node is killed, added, and told to go."""
    first = list(nodes(3))
    deadline = 20
    run = simulate(
        cluster.address,
        cluster={**LABELS, "sync_timeout_seconds": deadline},
        # All three are there from the first version on.
        settings={"train": {"steps": 10_000, **STEP}, "rollout": {"actors": 3, **SLOTS}},
        behaviour={"group_seconds": 0.5},
        special={"0": {"dies_loading": 2}, "1": {"hangs_loading": 3}, "2": {"wrong_digest": 4}},
    )
    run.until("step", gone=3, serving=3)
    kill_node(cluster, first.pop())
    # Before there is room for a replacement, which may serve before the step ends.
    run.until("step", gone=4, serving=2)
    nodes(3)
    run.until("step", serving=3)
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", f"--address={cluster.address}"]
    command += [f"--node-id={first.pop().node_id}", "--reason-message=spot", "--deadline-remaining-seconds=600"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION"]
    subprocess.run(command, check=True, capture_output=True)
    run.until("step", gone=5, serving=2)
    run.tell("stop")
    end = run.finish()

    assert run.books_add_up()
    last = run.steps()[-1]
    assert last["ledger"]["used"] == 16 * (last["step"] + 1)
    assert max(line["sync_seconds"] for line in run.steps()) < 2 * deadline, "no sync waits for two deadlines"
    said = "\n".join(run.said())
    late = f"`load_weights()` was not answered within cluster.sync_timeout_seconds={deadline}"
    assert f"rollout-1 is gone (lost): {late}" in said
    assert "rollout-2 is gone (failed): it reports version 4 with digest 0000" in said
    assert "is draining: its node is about to go away" in said
    assert end["gone"] == {"lost": 3, "failed": 1, "drained": 1, "cancelled": 0}
    assert end["asked"] == 8, "each was replaced, and the last of them waits for a node"


def test_what_a_killed_node_had_is_issued_again(cluster: Cluster, nodes: Any, simulate: Simulate) -> None:
    by_id = {node.node_id: node for node in nodes(2)}
    run = simulate(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 10_000, **STEP}, "rollout": {"actors": 2, **SLOTS}},
        behaviour={"group_seconds": 0.1},
        special={"1": {"group_seconds": 100_000}},  # not finished before the node is killed, however long that takes
    )
    begun = run.until("generating")
    assert begun["load"] == {"rollout-0": 8, "rollout-1": 8}, "4 at once, and 4 ahead"
    kill_node(cluster, by_id[begun["nodes"]["rollout-1"]])
    step = run.until("step", step=0)
    assert (step["ledger"]["used"], step["ledger"]["reissued"]) == (16, 8)
    run.tell("stop")
    assert run.finish()["gone"]["lost"] == 1
    assert run.books_add_up()


def test_the_end_of_the_last_actor_is_an_error_after_a_deadline(
    cluster: Cluster, nodes: Any, simulate: Simulate
) -> None:
    nodes(1)
    run = simulate(
        cluster.address,
        cluster={**LABELS, "placement_timeout_seconds": 30},
        settings={"train": {"steps": 10_000, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={"group_seconds": 0.1},
    )
    run.until("step", step=1)
    nodes(0)
    message = r"no rollout actor has been serving for \d+ s.*1 x \(1 CPU\) on nodes labelled"
    with pytest.raises(AssertionError, match=message):
        run.finish()


def test_what_can_never_fit_fails_at_once(cluster: Cluster, nodes: Any, simulate: Simulate) -> None:
    nodes(1)
    run = simulate(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 1, **STEP}, "rollout": {"actors": 3, "min_actors": 2, **SLOTS}},
        behaviour={},
    )
    with pytest.raises(AssertionError, match=r"needs 2 x \(1 CPU\) on nodes labelled role=rollout .* have room for 1"):
        run.finish()


def test_what_fits_but_is_taken_fails_at_a_deadline_and_says_what_is_missing(
    cluster: Cluster, nodes: Any, simulate: Simulate
) -> None:
    nodes(1)
    first = simulate(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 10_000, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={"group_seconds": 0.1},
    )
    first.until("step", step=0)
    second = simulate(
        cluster.address,
        cluster={**LABELS, "placement_timeout_seconds": 1},
        settings={"train": {"steps": 1, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={},
    )
    with pytest.raises(AssertionError, match=r"no place for rollout-0 after .*=1: it needs 1 x \(1 CPU\) on nodes"):
        second.finish()
    first.tell("stop")
    first.finish()


def test_a_question_that_kills_actors_is_set_aside_and_the_run_goes_on(
    cluster: Cluster, nodes: Any, simulate: Simulate, tmp_path: Path
) -> None:
    nodes(2)
    run = simulate(
        cluster.address,
        cluster=LABELS,
        settings={"run": {"dir": str(tmp_path)}, "train": {"steps": 3, **STEP}, "rollout": {"actors": 2, **SLOTS}},
        behaviour={"dies_on": "q7"},
        measured=False,
    )
    end = run.finish()
    assert run.books_add_up()
    assert run.steps()[-1]["ledger"]["used"] == 3 * 16
    assert run.steps()[-1]["ledger"]["dropped"]["set_aside"] >= 2, "it comes in each epoch"
    assert [folder.name for folder in (tmp_path / "set_aside").iterdir()] == ["q7"]
    # It is blamed for two deaths without other groups. The first is not one of them, unless the others were answered.
    assert end["gone"]["lost"] in (2, 3)


def test_actors_that_die_as_they_start_are_an_error_before_the_run_begins(
    cluster: Cluster, nodes: Any, simulate: Simulate
) -> None:
    nodes(1)
    run = simulate(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 1, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={"dies_starting": True},
    )
    with pytest.raises(AssertionError, match=r"3 in a row ended before they served\. Most recent failure: rollout-2: "):
        run.finish()


def test_a_failure_of_the_first_actor_ends_the_run(cluster: Cluster, nodes: Any, simulate: Simulate) -> None:
    nodes(1)
    run = simulate(
        cluster.address,
        cluster=LABELS,
        settings={"train": {"steps": 1, **STEP}, "rollout": {"actors": 1, **SLOTS}},
        behaviour={"wrong_digest": 0},
    )
    with pytest.raises(AssertionError, match=r"rollout-0 did not start: it reports version 0 with digest 000"):
        run.finish()


@contextmanager
def ray_process(*arguments: str, inside: tuple[str, ...] = (), **environment: str) -> Iterator[None]:
    """`ray start --block` with these arguments, until the context is left; then nothing of it is left.

    Ray takes its time to end a node that has lost its head, so that what is not gone soon is killed.
    """
    command = [*inside, str(Path(sys.executable).with_name("ray")), "start", "--block", *arguments]
    command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_port()}"]
    command += OWN_PORTS
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_nodes(address: str, count: int, inside: tuple[str, ...]) -> None:
    """Wait until so many nodes have joined; the head may not answer yet."""
    script = (
        f"import ray, time; ray.init({address!r}, logging_level='ERROR', log_to_driver=False)\n"
        f"while sum(node['Alive'] for node in ray.nodes()) < {count}: time.sleep(0.2)"
    )
    end = time.monotonic() + PATIENCE
    while (done := subprocess.run([*inside, sys.executable, "-c", script], timeout=PATIENCE)).returncode:
        assert time.monotonic() < end, done


def test_the_autoscaler_follows_the_request_up_and_down(tmp_path: Path, simulate: Simulate) -> None:
    """One node to begin with, four while the learner waits, one when updates take longer than generation."""
    address = f"127.0.0.1:{free_port()}"
    settings = tmp_path / "cluster.json"
    settings.write_text(cluster_settings(address, most_nodes=4, idle_minutes=0.05))
    head = ray_process(
        "--head",
        "--num-cpus=2",
        "--node-ip-address=127.0.0.1",
        f"--port={address.rpartition(':')[2]}",
        "--include-dashboard=false",
        "--labels=role=head",
        f"--autoscaling-config={settings}",
        RAY_enable_autoscaler_v2="1",
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_CLOUD_INSTANCE_ID=HEAD_ID,
        RAY_NODE_TYPE_NAME="head",
        PYTHONPATH=f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    with head:
        wait_for_nodes(address, 1, ())
        rollout = {"actors": 1, "max_actors": 4, "scale_every": 2, **SLOTS}
        run = simulate(
            address,
            cluster=LABELS,
            settings={"train": {"steps": 10_000, **STEP}, "rollout": rollout},
            # 16 groups, 4 at once, 0.25 seconds each: 1 actor-second a step, and more on a busy machine. Of 0.1 seconds
            # of update follow 1 / (0.1 / 0.8 * 0.2) = 40 actors (and 4 of a second with what a busy machine adds), of
            # 10 seconds one, as long as a step has less than 2.5 actor-seconds.
            behaviour={"group_seconds": 0.25},
            update_seconds=0.1,
        )
        run.until("step", serving=1)
        run.until("step", nodes=5, serving=4)
        run.tell("slower")
        run.until("step", target=1)
        run.until("step", nodes=2, serving=1)
        run.tell("stop")
        run.finish()
        assert run.books_add_up()


@contextmanager
def network(nodes: int) -> Iterator[tuple[str, list[str]]]:
    """A network namespace for the head and one for each node; yields their names.

    The head's has a bridge and the address 10.98.7.1, that of node n 10.98.7.(10 + n). `ip -n <head> link set <node>
    down` cuts the node off.
    """
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces here: the command ip (iproute2) is not installed")
    head = f"mr{os.getpid() % 10**6}"
    names = [f"{head}n{n}" for n in range(nodes)]
    commands = [
        f"netns add {head}",
        f"-n {head} link add bridge type bridge",
        f"-n {head} address add 10.98.7.1/24 dev bridge",
        f"-n {head} link set bridge up",
        f"-n {head} link set lo up",
    ]
    for n, name in enumerate(names):
        commands += [
            f"netns add {name}",
            f"-n {head} link add {name} type veth peer name eth0 netns {name}",
            f"-n {head} link set {name} master bridge up",
            f"-n {name} address add 10.98.7.{10 + n}/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
        ]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: ip {command}: {done.stderr.strip()}")
        yield head, names
    finally:
        for name in (*names, head):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_a_node_that_is_cut_off_in_mid_sync_is_given_up_at_the_deadline(simulate: Simulate) -> None:
    deadline = 14
    with network(2) as (head_name, names):
        in_head = ("ip", "netns", "exec", head_name)
        address = "10.98.7.1:6379"
        head = ray_process(
            "--head",
            "--num-cpus=2",
            "--node-ip-address=10.98.7.1",
            "--port=6379",
            "--include-dashboard=false",
            "--labels=role=head",
            inside=in_head,
        )
        first, second = (
            ray_process(
                f"--address={address}",
                "--num-cpus=1",
                f"--node-ip-address=10.98.7.{10 + n}",
                "--labels=role=rollout",
                inside=("ip", "netns", "exec", name),
            )
            for n, name in enumerate(names)
        )
        with ExitStack() as stack:
            # One after the other: they share a folder for sockets and ports, which nodes of their own would not.
            for number, node in enumerate((head, first, second)):
                stack.enter_context(node)
                wait_for_nodes(address, number + 1, in_head)
            run = simulate(
                address,
                inside=in_head,
                cluster={**LABELS, "sync_timeout_seconds": deadline},
                settings={"train": {"steps": 4, **STEP}, "rollout": {"actors": 2, **SLOTS}},
                # Time enough to cut a node off while it loads, and to load before the deadline.
                behaviour={"group_seconds": 0.1, "load_seconds": 4.0},
            )
            run.until("step", step=1)
            run.until("sync", version=2)
            subprocess.run(["ip", "-n", head_name, "link", "set", names[0], "down"], check=True)
            end = run.finish()
    assert run.books_add_up()
    assert [len(line["actors"]) for line in run.steps()] == [2, 2, 1, 1]
    assert max(line["sync_seconds"] for line in run.steps()) < 2 * deadline
    assert end["gone"]["lost"] == 1
