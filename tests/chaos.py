"""A training of which processes are killed: `python -m tests.chaos --kills 10 --seed 0`.

Real engines, DeepSpeed and Ray, the tiny model. Roles take turns in a random order: driver, learner rank, rollout
actor, its engine process, reward actor; learner and driver are hit in the middle of an update, a weight sync or a save
where that is their turn. The next kill comes 15 s after the run has recovered from the one before; a killed driver is
started again by the same command (`run.resume=auto`).

With `--hang`, processes are stopped (SIGSTOP) instead, and a run finds out by its deadlines. The driver is left alone;
the disk that the run writes to (a tmpfs, which needs root) is full for a while instead.

Right is: the run finishes, no question was learned from twice or lost, the ledger adds up, the accuracy is that of the
same run left alone (within its 95 % interval), and nothing is left behind, for which nothing else may run on the
machine. Prints a row for each kill; the exit status is 1 where something is not right.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil

from tests.faults.files import full, small_disk
from tests.faults.runs import Run

PAUSE_SECONDS = 15.0
SETTINGS = (
    "--config",
    "configs/phantom_cpu.yaml",
    "data.eval_questions=200",
    "run.save_every=2",
    "run.rollouts_every=1",
    "run.resume=auto",
    "run.max_restarts=5",
)
# A minute of two busy cores is enough for each of these.
DEADLINES = tuple(f"cluster.{what}_timeout_seconds=60" for what in ("rollout", "update", "sync"))
DISK, DISK_BYTES, FULL_SECONDS = "disk", 400 * 2**20, 20.0
ROLES: dict[str, tuple[str, ...]] = {
    "learner rank": ("ray::LearnerActor",),
    "rollout actor": ("ray::RolloutActor",),
    "engine": ("VLLM::EngineCore",),
    "reward actor": ("ray::RewardActor",),
}
# What a learner rank is doing, by its title; a save is seen on the disk.
MOMENTS: dict[str, tuple[str, ...]] = {
    "any": (),
    "mid-update": ("ray::LearnerActor.update",),
    "mid-sync": ("ray::LearnerActor.publish_weights",),
    "mid-save": (),
}
_LEFT = (Path("/dev/shm"), Path(tempfile.gettempdir()))


class Chaos:
    """A run and its kills; `run` is the process that is alive now."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], chance: random.Random, *, hang: bool) -> None:
        self._arguments = arguments
        self._hang = hang
        self._chance = chance
        self.run = Run(folder, arguments)
        self.restarts = 0
        self._size = (0, 0)

    def lines(self) -> list[dict[str, Any]]:
        path = self.run.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if "pool/actors_serving" in line]

    def is_well(self, since: float) -> bool:
        """Whether a step was logged after this time (seconds, monotonic) with as many actors as are wanted."""
        path = self.run.folder / "metrics.jsonl"
        if not path.exists():
            return False
        # A run that goes on writes the file anew, without the lines of the steps that it does again.
        (file, size), self._size = self._size, (path.stat().st_ino, path.stat().st_size)
        if self._size[0] != file or self._size[1] <= size or time.monotonic() < since:
            return False
        lines = self.lines()
        return bool(lines) and lines[-1]["pool/actors_serving"] >= lines[-1]["pool/actors_wanted"]

    def strike(self, role: str, moment: str) -> bool:
        """Wait for the moment and kill or stop one process of the role; False where the run had ended before."""
        of_moment = MOMENTS[moment]
        now: Callable[[], object] = (lambda: self.run.titled(*of_moment)) if of_moment else lambda: True
        if not self.run.until(self.run.saves if moment == "mid-save" else now):
            return False
        if role == DISK:
            with full(self.run.folder):
                end = time.monotonic() + FULL_SECONDS
                return self.run.until(lambda: time.monotonic() > end)
        if role == "driver":
            self.run.process.kill()
            self.run.process.wait()
            self.run = Run(self.run.folder, self._arguments)
            self.restarts += 1
            return True
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = self.run.titled(*ROLES[role])
            return bool(found)

        if not self.run.until(there):
            return False
        chosen = self._chance.choice(found)
        if self._hang:
            chosen.suspend()
        else:
            chosen.kill()
        return True


def schedule(kills: int, chance: random.Random, *, hang: bool) -> list[tuple[str, str]]:
    """Each role at least once where there are enough kills, and each moment of the driver and the learner."""
    planned = [(role, moment) for role in (DISK if hang else "driver", "learner rank") for moment in MOMENTS]
    others = [(role, "any") for role in ROLES if role != "learner rank"]
    chance.shuffle(planned)
    several = [*others, *planned, *others]
    while len(several) < kills:
        several.append(chance.choice([*others, *planned]))
    chosen = several[:kills]
    chance.shuffle(chosen)
    return chosen


def problems(run: Run, accuracy_alone: float, questions: int) -> list[str]:
    """What is not right with a run that has ended."""
    summary = json.loads((run.folder / "summary.json").read_text())
    found = []
    issued, used, dropped = (summary[f"groups_{what}"] for what in ("issued", "used", "dropped"))
    if not 0 <= issued - used - dropped <= 64:  # in flight at the end
        found.append(f"the ledger does not add up: {issued} issued, {used} used, {dropped} dropped")
    ids = [
        line["prompt_id"]
        for path in sorted((run.folder / "rollouts").glob("step-*.jsonl"))
        for line in map(json.loads, path.read_text().splitlines()[::8])
    ]
    # A run goes on without the files of steps for which the disk had no room, and says so.
    unwritten = set(re.findall(r"NOT WRITTEN: \S*/rollouts/(step-\d+)\.jsonl", run.output.read_text()))
    missing = len(unwritten) * used // summary["steps"]
    if len(ids) + missing != used or len(set(ids)) != len(ids):
        found.append(
            f"{used} groups used, {len(ids)} recorded and {missing} said to be missing, {len(ids) - len(set(ids))} of "
            "them twice"
        )
    accuracy = summary["eval"]["after"]["accuracy"]
    margin = 1.96 * math.sqrt(2 * accuracy_alone * (1 - accuracy_alone) / questions)
    if abs(accuracy - accuracy_alone) > margin:
        found.append(f"accuracy {accuracy:.3f}, {accuracy_alone:.3f} alone, more than {margin:.3f} apart")
    print(f"accuracy {accuracy:.3f}, {accuracy_alone:.3f} alone (95 % of differences are within {margin:.3f})")
    return found


def left_behind(before: set[Path | psutil.Process]) -> list[str]:
    """Processes and files that were not there before, half a minute after the end."""
    deadline = time.monotonic() + 30
    while True:
        left = (files_now() | processes_now()) - before
        processes = [str(each) for each in left if isinstance(each, psutil.Process) and each.is_running()]
        files = sorted(str(path) for path in left if isinstance(path, Path))
        if (not processes and not files) or time.monotonic() > deadline:
            return [f"left behind: {each}" for each in (*processes, *files)]
        time.sleep(1)


def files_now() -> set[Path]:
    # Kept on purpose: Ray's folders of sessions, which have the logs; what torch has compiled; the lock of the folder
    # that each user has for weights on their way.
    kept = ("ray", "torchinductor_")
    found = {path for folder in _LEFT for path in folder.iterdir() if not path.name.startswith(kept)}
    staging = {path for path in found if path.name == f"medr1_ray-{os.getuid()}"}
    return found - staging | {path for folder in staging for path in folder.iterdir() if path.name != "lock"}


def processes_now() -> set[psutil.Process]:
    # All of them, not those that name the run: an engine or a worker of Ray has nothing but its title.
    return set(psutil.process_iter())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--hang", action="store_true", help="stop processes and fill the disk instead")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    out = options.out.absolute() / f"{'hang' if options.hang else 'seed'}-{options.seed}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    arguments = (*SETTINGS, f"train.steps={options.steps}")
    with small_disk(out / "run", DISK_BYTES) if options.hang else nullcontext():
        return run_and_strike(options, chance, out, arguments)


def run_and_strike(
    options: argparse.Namespace, chance: random.Random, out: Path, arguments: tuple[str, ...]
) -> int:
    # The seed is that of the kills: all of them are compared with one run.
    alone = Run(out.parent / f"alone-{options.steps}", arguments)
    alone.finish()
    evaluation = json.loads((alone.folder / "summary.json").read_text())["eval"]["after"]
    before = files_now() | processes_now()
    arguments += DEADLINES if options.hang else ()
    chaos = Chaos(out / "run", arguments, chance, hang=options.hang)
    print("| kill | role | moment | at step | recovered after s |\n|---|---|---|---|---|", flush=True)
    chaos.run.until(lambda: chaos.is_well(0.0))
    for number, (role, moment) in enumerate(schedule(options.kills, chance, hang=options.hang), start=1):
        step = chaos.lines()[-1]["step"]
        if not chaos.strike(role, moment):
            print(f"the run ended before kill {number}; give more --steps")
            break
        killed = time.monotonic()
        # What was under way may still be logged.
        recovered = chaos.run.until(lambda since=killed + 2.0: chaos.is_well(since))
        print(f"| {number} | {role} | {moment} | {step} | {time.monotonic() - killed:.0f} |", flush=True)
        resume = time.monotonic() + PAUSE_SECONDS
        if not recovered or not chaos.run.until(lambda resume=resume: time.monotonic() > resume):
            break
    chaos.run.finish()
    found = [*problems(chaos.run, evaluation["accuracy"], evaluation["n"]), *left_behind(before)]
    print("\n".join(found) or f"all right: the run finished, its driver was started {chaos.restarts + 1} times")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
