"""A run of real engines and ranks of which some die: it goes on by itself, or by the same command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.repository import REPOSITORY

# Enough that the run is not over before it is killed, and no more than there are questions for.
STEPS = 60
SMALL = [
    "data.phantom_images=120",
    "data.eval_questions=8",
    "train.prompts_per_step=4",
    "train.group_size=4",
    "run.save_every=1",
    "run.resume=auto",
    "learner.world_size=2",
    "rollout.actors=1",
    f"train.steps={STEPS}",
    "run.rollouts_every=1",
]


class Training:
    """The command as a user types it, on a local cluster of its own."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.addresses: set[str] = set()
        self._output = folder / "output.txt"
        paths = [f"run.dir={self.run}", f"data.root={folder / 'phantoms'}"]
        with self._output.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "medr1_ray.train", "--config", "configs/phantom_cpu.yaml", *SMALL, *paths],
                cwd=REPOSITORY,
                env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
                stdout=output,
                stderr=output,
            )

    def said(self) -> str:
        return " ".join(self._output.read_text().split())

    def until(self, what: Callable[[], Any], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def steps(self) -> list[int]:
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return [line["step"] for line in lines if "reward/total_mean" in line]

    def end(self) -> None:
        """As a power cut: the command and all that it started."""
        every = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in every:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def actors(self, kind: str) -> list[psutil.Process]:
        """Processes of the actors of this class."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(child.cmdline()).startswith(f"ray::{kind}"):
                    found.append(child)
        return found

    def engines(self) -> list[int]:
        """The process ids of the first actor's engines, from the moment that they begin to start."""
        log = self.run / "logs" / "rollout-0.log"
        return [int(pid) for pid in re.findall(r"EngineCore pid=(\d+)", log.read_text())] if log.exists() else []

    def listening(self) -> set[str]:
        """The addresses at which the run's processes can be reached."""
        found = set()
        driver = psutil.Process(self.process.pid)
        for process in (driver, *driver.children(recursive=True)):
            with suppress(psutil.Error):
                sockets = process.net_connections("inet")
                found |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        return {address.removeprefix("::ffff:") for address in found}


@pytest.fixture(scope="module")
def lost_and_killed(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run whose engine is killed as it starts, then its second rank, as the kernel would where memory is short, and
    then the run itself; started again by the same command."""
    folder = tmp_path_factory.mktemp("faults")
    first = Training(folder)
    try:
        first.until(first.engines)
        os.kill(first.engines()[0], signal.SIGKILL)
        lost = r"rollout-0 is gone \(lost\): EngineLostError: the engine process was ended by"
        first.until(lambda: re.search(lost, first.said()))
        first.until(lambda: len(first.steps()) >= 2)
        addresses = first.listening()
        first.actors("LearnerActor")[-1].kill()
        first.until(lambda: re.search(r"LOST: learner-\d died while", first.said()))
        first.until(lambda: len(first.steps()) >= 4)
    finally:
        first.end()
    second = Training(folder)
    second.addresses = addresses
    assert second.process.wait(300) == 0, second.said()
    return second


def test_a_run_that_loses_a_rank_goes_on_by_itself(lost_and_killed: Training) -> None:
    said = lost_and_killed.said()
    assert said.count("LOST: ") == 1
    assert "The run goes on from checkpoint-" in said
    assert said.count("resuming after step ") == 2, "once by itself, and once by the command"


def test_a_local_run_of_two_ranks_listens_on_loopback_alone(lost_and_killed: Training) -> None:
    assert lost_and_killed.addresses == {"127.0.0.1"}


def test_no_step_is_lost_or_done_twice(lost_and_killed: Training) -> None:
    assert lost_and_killed.steps() == list(range(1, STEPS + 1))
    summary = json.loads((lost_and_killed.run / "summary.json").read_text())
    assert (summary["steps"], summary["groups_used"]) == (STEPS, 4 * STEPS)
    questions = [
        json.loads(line)["prompt_id"]
        for path in sorted((lost_and_killed.run / "rollouts").glob("step-*.jsonl"))
        for line in path.read_text().splitlines()[::4]
    ]
    assert len(set(questions)) == len(questions) == 4 * STEPS, "no question is asked twice"
