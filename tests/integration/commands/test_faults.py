"""A run of real engines and ranks of which some die: it goes on by itself, or by the same command."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.processes import PATIENCE
from tests.faults.runs import Run

SMALL = [
    *("--config", "configs/phantom_cpu.yaml"),
    "data.phantom_images=120",
    "data.eval_questions=8",
    "train.prompts_per_step=4",
    "train.group_size=4",
    "run.save_every=1",
    "run.rollouts_every=1",
    "run.resume=auto",
    "learner.world_size=2",
    "rollout.actors=1",
]


class Training(Run):
    """The command as a user types it, on a local cluster of its own, for so many steps in all."""

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__(folder / "run", [*SMALL, f"train.steps={steps}"])
        self.addresses: set[str] = set()

    def wait_for(self, what: Callable[[], object]) -> None:
        assert self.until(what, PATIENCE), self.said()

    def all_said(self) -> str:
        """What all commands of this folder have printed."""
        return " ".join(self.output.read_text().split())

    def steps(self) -> list[int]:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        lines: list[dict[str, Any]] = [
            json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")
        ]
        return [line["step"] for line in lines if "reward/total_mean" in line]

    def engines(self) -> list[int]:
        """The process ids of the first actor's engines, from the moment that they begin to start."""
        log = self.folder / "logs" / "rollout-0.log"
        return [int(pid) for pid in re.findall(r"EngineCore pid=(\d+)", log.read_text())] if log.exists() else []

    def listening(self) -> set[str]:
        """The addresses at which the run's processes can be reached."""
        found = set()
        for process in (psutil.Process(self.process.pid), *self.children()):
            with suppress(psutil.Error):
                sockets = process.net_connections("inet")
                found |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        return {address.removeprefix("::ffff:") for address in found}


@pytest.fixture(scope="module")
def lost_and_killed(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run whose engine is killed as it starts, then its second rank, as the kernel would where memory is short, and
    then the run itself; started again by the same command."""
    folder = tmp_path_factory.mktemp("faults")
    first = Training(folder, steps=100_000)  # it cannot end before it is killed
    try:
        first.wait_for(first.engines)
        os.kill(first.engines()[0], signal.SIGKILL)
        lost = r"rollout-0 is gone \(lost\): EngineLostError: the engine process was ended by"
        first.wait_for(lambda: re.search(lost, first.all_said()))
        first.wait_for(lambda: len(first.steps()) >= 2)
        addresses = first.listening()
        first.titled("ray::LearnerActor")[-1].kill()
        first.wait_for(lambda: re.search(r"LOST: learner-\d died while", first.all_said()))
        first.wait_for(lambda: "resuming after step " in first.all_said())
        done = len(first.steps())
        first.wait_for(lambda: len(first.steps()) >= done + 2)
    finally:
        first.kill()
    second = Training(folder, steps=max(first.steps()) + 2)
    second.addresses = addresses
    try:
        second.process.wait(PATIENCE)
    finally:
        second.kill()
    assert second.process.returncode == 0, second.said()
    return second


def test_a_run_that_loses_a_rank_goes_on_by_itself(lost_and_killed: Training) -> None:
    said = lost_and_killed.all_said()
    # One, unless Ray or a rank of the new start is lost too, as may happen on a busy machine.
    losses = said.count("LOST: ")
    assert losses >= 1
    assert "The run goes on from checkpoint-" in said
    assert said.count("resuming after step ") == losses + 1, "each time by itself, and once by the command"


def test_a_local_run_of_two_ranks_listens_on_loopback_alone(lost_and_killed: Training) -> None:
    assert lost_and_killed.addresses == {"127.0.0.1"}


def test_no_step_is_lost_or_done_twice(lost_and_killed: Training) -> None:
    steps = lost_and_killed.steps()
    assert steps == list(range(1, steps[-1] + 1))
    summary = json.loads((lost_and_killed.folder / "summary.json").read_text())
    assert (summary["steps"], summary["groups_used"]) == (len(steps), 4 * len(steps))
    questions = [
        json.loads(line)["prompt_id"]
        for path in sorted((lost_and_killed.folder / "rollouts").glob("step-*.jsonl"))
        for line in path.read_text().splitlines()[::4]
    ]
    assert len(set(questions)) == len(questions) == summary["groups_used"], "no question is asked twice"
