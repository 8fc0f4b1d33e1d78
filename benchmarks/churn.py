"""A whole training run whose rollout actors are killed and replaced, against an undisturbed run.

    python -m benchmarks.churn --against runs/phantom_cpu/summary.json [--config FILE] [--json] [key.sub=value ...]

Starts a Ray cluster of a head and two rollout nodes (processes of this machine) and `python -m medr1_ray.train` on it.
Until the run ends, it repeats three disturbances: it kills an engine that is loading weights, sends a node a preemption
notice and adds another node, and kills an actor. After each, the replacement must join. Engines are real and are killed
with SIGKILL. `ours` is the final accuracy, `theirs` that of the undisturbed run. Fails if any step's group ledger does
not add up.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from medr1_ray.base.command_line import ArgumentParser, run_to_status

ROOT = Path(__file__).parents[1]
STAGED = Path("/dev/shm") / f"medr1_ray-{os.getuid()}"
LABELS = "{learner: {role: head}, reward: {role: head}, rollout: {role: rollout}}"


class Ended(Exception):
    """The training has ended."""


class Training:
    """A process of `python -m medr1_ray.train` on a cluster, and the lines that it prints."""

    def __init__(self, config: str, address: str, *arguments: str) -> None:
        command = [sys.executable, "-u", "-m", "medr1_ray.train", "--config", config, f"cluster.address={address}"]
        command += [f"cluster.labels={LABELS}", *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put("")

    def until(self, *patterns: str, timeout: float = 900.0) -> str:
        """Wait until each pattern has matched a line that was printed since the last call, in any order; return the
        last such line.

        Raises:
            Ended: the training ended before.
            AssertionError: that took more than `timeout` seconds.
        """
        end = time.monotonic() + timeout
        missing, line = list(patterns), ""
        while missing:
            try:
                line = self._queue.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {missing} within {timeout:g} s after: {self.lines[-20:]}") from None
            if not line:
                self._queue.put("")  # later calls must see the end too
                raise Ended("".join(self.lines))
            self.lines.append(line)
            missing = [pattern for pattern in missing if not re.search(pattern, line)]
        return line


@contextmanager
def rollout_cluster() -> Iterator[Cluster]:
    """Start a head for the learner and the reward actor, and two nodes for one rollout actor each."""
    head = {"num_cpus": 2, "labels": {"role": "head"}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, labels={"role": "rollout"})
        yield cluster
    finally:
        cluster.shutdown()


def engine_process(run: Path, name: str) -> int:
    """Return the process id of an actor's engine, read from the actor's log."""
    log = (run / "logs" / f"{name}.log").read_text()
    return int(re.findall(r"EngineCore pid=(\d+)", log)[-1])


def parent(pid: int) -> int:
    """Return the id of the parent process; an engine's parent is its actor."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_in_mid_sync(training: Training, run: Path, name: str) -> None:
    """Kill an actor's engine while staged weight files exist, which is while an engine loads them."""
    engine = engine_process(run, name)
    while not list(STAGED.glob("*.weights")):
        if training.process.poll() is not None:
            return
        time.sleep(0.001)
    os.kill(engine, signal.SIGKILL)


def preempt(cluster: Cluster, run: Path, name: str) -> Any:
    """Send a preemption notice to the node on which this actor runs; return the node."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    pid = engine_process(run, name)
    while pid not in raylets:  # engine, actor, raylet: each is the parent of the one before
        pid = parent(pid)
    drain(cluster, raylets[pid])
    return raylets[pid]


def drain(cluster: Cluster, node: Any) -> None:
    """Send a preemption notice to a node, which leaves it ten minutes."""
    ray = str(Path(sys.executable).with_name("ray"))  # not on PATH unless the environment is activated
    command = [ray, "drain-node", f"--address={cluster.address}", f"--node-id={node.node_id}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=600"]
    subprocess.run(command, check=True, capture_output=True)


def churn(training: Training, cluster: Cluster, run: Path) -> None:
    """Disturb the training, round after round, until it ends."""
    try:
        training.until(r"^step ")
        oldest, newest = 0, 1
        while True:
            kill_in_mid_sync(training, run, f"rollout-{oldest}")
            training.until(rf"rollout-{oldest} is gone")
            training.until(rf"rollout-{newest + 1} has joined")
            node = preempt(cluster, run, f"rollout-{newest}")
            cluster.add_node(num_cpus=1, labels={"role": "rollout"})
            # Its replacement may be there before it has finished what it had.
            training.until(rf"rollout-{newest} is gone", rf"rollout-{newest + 2} has joined")
            cluster.remove_node(node, allow_graceful=True)
            os.kill(parent(engine_process(run, f"rollout-{newest + 1}")), signal.SIGKILL)
            training.until(rf"rollout-{newest + 1} is gone")
            training.until(rf"rollout-{newest + 3} has joined")
            oldest, newest = newest + 2, newest + 3
    except Ended:
        return


def steps_of(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run's steps.

    Raises:
        AssertionError: the group ledger of a step does not add up.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "ledger/groups_issued" in line]
    for step in steps:
        ended = step["ledger/groups_used"] + step["ledger/groups_dropped"] + step["ledger/groups_in_flight"]
        assert step["ledger/groups_issued"] == ended, step
    return steps


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/phantom_cpu.yaml")
    parser.add_argument("--against", type=Path, required=True, help="`summary.json` of the undisturbed run")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("settings", nargs="*", help="key.sub=value, as for medr1_ray.train")
    arguments = parser.parse_args()
    return run_to_status(lambda ending: compare(arguments))


def compare(arguments: argparse.Namespace) -> int:
    """Train under disturbances and print the comparison.

    Raises:
        ValueError: `--against` is not the summary of a finished run.
    """
    try:
        undisturbed = json.loads(arguments.against.read_text())["eval"]["after"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--against {arguments.against} is not the summary.json of a finished run ({error})") from None
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory() as folder, rollout_cluster() as cluster:
        run = Path(folder) / "run"
        # The run must survive with one actor, and must not change their number on its own.
        fixed = ("rollout.min_actors=1", "rollout.scale_every=1000000", f"run.dir={run}")
        training = Training(arguments.config, cluster.address, *fixed, *arguments.settings)
        churn(training, cluster, run)
        if training.process.wait() != 0:
            print("".join(training.lines[-20:]), file=sys.stderr)
            return 1
        steps = steps_of(run)
        summary = json.loads((run / "summary.json").read_text())
    changes = [line.strip() for line in training.lines if " is gone" in line or " has joined" in line]
    print("\n".join(changes))
    ours, theirs = summary["eval"]["after"]["accuracy"], undisturbed["accuracy"]
    reissued, late = steps[-1]["ledger/groups_reissued"], steps[-1]["ledger/answers_late"]
    longest = max(step["time/step_seconds"] for step in steps)
    print(
        f"accuracy {ours:.3f}, undisturbed {theirs:.3f}; {len(changes)} changes, {reissued} groups issued again, "
        f"{late} late answers dropped, longest step {longest:.1f} s"
    )
    if arguments.json:
        settings = {"changes": len(changes), "reissued": reissued, "late": late, "longest_step_seconds": longest}
        result = {"name": "accuracy under churn", "ours": ours, "theirs": theirs, "unit": "accuracy"}
        print(json.dumps({**result, "ratio": ours / theirs, "of_limit": None, "settings": settings}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
