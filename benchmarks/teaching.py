"""Which groups teach: seconds and completions until phantoms are answered with an accuracy of 0.90.

    python -m benchmarks.teaching [--json] [--quick] [--accuracy 0.9] [--seeds 1]

A group whose rewards are all equal has no advantage, and so teaches nothing but its KL. The same model is trained by
`configs/phantom_cpu.yaml` in turn

- with every question, 32 a step;
- with dynamic sampling: such groups are generated and replaced (`train.dynamic_sampling`), 16 a step, as about half of
  the 32 teach;
- with online pass rates: a question that was answered right in all completions is passed over in the next epoch, and so
  not even generated (`data.pass_rates: online`). An epoch of all 6,000 images is 597 steps, longer than the training,
  so this side has 1,500 images, and evaluation questions of its own.

Each is evaluated on 400 held-out questions every 10 steps. The seconds are those of rollout, update, weight sync and
parity, without evaluations, checkpoints and the start. A result has the seconds of a side and of every question;
completions, steps, accuracies at the end and with blank images are in its settings. Where 0.90 was not reached the
seconds are infinite. Two equal runs differ by up to 0.04 in the accuracy after the same steps: `--seeds` says more.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.helpers.common import Result, command, progress
from benchmarks.helpers.shapes import ROOT, WORK
from medr1_ray.config.loading import load_config

CONFIG = ROOT / "configs" / "phantom_cpu.yaml"
SIDES = {
    "every question": (),
    "dynamic sampling": ("train.dynamic_sampling=true", "train.prompts_per_step=16"),
    "online pass rates": ("data.pass_rates=online", "data.max_pass_rate=0.99", "data.phantom_images=1500"),
}
EVALUATE_EVERY = 10
PHASES = ("rollout", "update", "weight_sync", "parity")


@dataclass(frozen=True)
class Point:
    """An evaluation during a training: `seconds` of training and `completions` asked for until then."""

    step: int
    accuracy: float
    seconds: float
    completions: int


def points(metrics: Path, group_size: int) -> list[Point]:
    """Return the evaluations of a run's `metrics.jsonl`, in order."""
    found: list[Point] = []
    seconds, completions = 0.0, 0
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "time/step_seconds" in row:
            seconds += sum(row[f"time/{phase}_seconds"] for phase in PHASES)
            completions = row["ledger/groups_issued"] * group_size
        if "eval/accuracy" in row:
            found.append(Point(row["step"], row["eval/accuracy"], seconds, completions))
    return found


def reached(evaluations: list[Point], accuracy: float) -> Point | None:
    """Return the first evaluation with at least this accuracy."""
    return next((each for each in evaluations if each.accuracy >= accuracy), None)


def measure(name: str, seed: int, arguments: argparse.Namespace) -> Result:
    """Train once."""
    folder = WORK / "runs" / "teaching" / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    asked = [*SIDES[name], f"train.seed={seed}", f"run.dir={folder}", f"run.evaluate_every={EVALUATE_EVERY}"]
    if arguments.quick:
        asked += ["train.steps=2", "learner.warmup_steps=0", "data.eval_questions=50", "run.evaluate_every=1"]
    progress(f"{name}, seed {seed}: {' '.join(asked)}")
    train = [sys.executable, "-m", "medr1_ray.train", "--config", str(CONFIG), *asked]
    subprocess.run(train, cwd=ROOT, check=True, stdout=sys.stderr)
    group_size = load_config([CONFIG], asked).train.group_size
    evaluations = points(folder / "metrics.jsonl", group_size)
    there = reached(evaluations, arguments.accuracy)
    accuracies = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["eval"]
    settings = {
        "seed": seed,
        "accuracy": arguments.accuracy,
        "reached": asdict(there) if there else None,
        "end": asdict(evaluations[-1]),
        "accuracy_blank_image": accuracies["blank_image"],
    }
    return Result(name, there.seconds if there else math.inf, math.nan, "s", math.nan, None, settings)


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    results = []
    for seed in range(arguments.seeds):
        found = [measure(name, seed, arguments) for name in SIDES]
        every = found[0].ours
        results += [replace(each, theirs=every, ratio=every / each.ours if each.ours else math.nan) for each in found]
        for each in found:
            progress(f"{each.name}, seed {seed}: {each.settings}")
    return results


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accuracy", type=float, default=0.9, help="the accuracy to reach (0.9)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each side, by seeds from 0 on (1)")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
