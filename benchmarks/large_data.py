"""A data set of OmniMedVQA's size: seconds and peak memory of `prepare`, of a run's start, and of 50 steps.

    python -m benchmarks.large_data [--quick] [--json] [--images 40000] [--rows 106000] [--evaluate 17000]

The data are made: files of 384 x 384 pixels, each with bytes of its own, in OmniMedVQA's layout, with questions of its
modalities and types. Engines are fake (`medr1_ray/rollout/fake_actor.py`), 20 ms a group. Peak memory is the largest
resident set of one process, as the kernel counts it; shared memory of Ray's object store counts where it was touched.
`theirs` is what a start, and the run after it, are to stay within.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from benchmarks.helpers.common import Result, command, progress
from benchmarks.helpers.data.made import PIXELS, make
from benchmarks.helpers.shapes import ROOT, WORK

STEPS = 50
START_SECONDS, START_GIGABYTES, RUN_GIGABYTES = 10.0, 1.0, 2.0


def measured(*words: str) -> tuple[str, float, float]:
    """Run a Python command; return what it printed, its wall-clock seconds, and the bytes of its largest process."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {said}")
    return said, time.perf_counter() - start, usage.ru_maxrss * 1024.0


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    images, rows, evaluate = arguments.images, arguments.rows, arguments.evaluate
    if arguments.quick:
        images, rows, evaluate = images // 50, rows // 50, evaluate // 50
    source, prepared = WORK / "large" / "source", WORK / "large" / "prepared"
    progress(f"making {rows:,} questions about {images:,} images")
    make(source, images, rows)
    shutil.rmtree(prepared, ignore_errors=True)
    given = {"images": images, "rows": rows}
    _, seconds, size = measured("-m", "medr1_ray.data.prepare", "--root", str(source), "--out", str(prepared))
    results = [
        Result("prepare", seconds, seconds, "s", 1.0, None, given),
        Result("prepare, peak memory of a process", size / 1e9, size / 1e9, "GB", 1.0, None, given),
    ]
    settings = [
        f"run.dir={WORK / 'runs' / 'large'}",
        "data.format=prepared",
        f"data.root={prepared}",
        f"data.eval_questions={evaluate}",
        f"data.image_size={PIXELS // 28 * 28}",
        f"train.steps={STEPS}",
        "train.prompts_per_step=32",
        "rollout.actors=4",
        "rollout.cpus_per_actor=0.001",
        "rollout.engine={max_num_seqs: 8}",
        "reward.functions={accuracy: 1.0}",
    ]
    shutil.rmtree(WORK / "runs" / "large", ignore_errors=True)
    said, _, size = measured("-m", "benchmarks.helpers.data.large_start", str(STEPS), *settings)
    told = json.loads(said.splitlines()[-1])
    took = told["seconds"]
    given |= {name: told[name] for name in ("train", "evaluation", "peak gigabytes")} | took
    start = took["reading and checks"] + took["stream"] + took["evaluation prompts"]
    # The last phase of a start; the peak of the process itself includes what it does as it ends.
    peak, whole = told["peak gigabytes"]["evaluation prompts"], size / 1e9
    what = "peak memory of the driver"
    return [
        Result("start of a run", start, START_SECONDS, "s", START_SECONDS / start, None, given),
        Result(f"start of a run, {what}", peak, START_GIGABYTES, "GB", START_GIGABYTES / peak, None, given),
        Result(f"start, evaluation and steps, {what}", whole, RUN_GIGABYTES, "GB", RUN_GIGABYTES / whole, None, given),
        *results,
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=40_000, help="image files (default: 40,000)")
    parser.add_argument("--rows", type=int, default=106_000, help="questions (default: 106,000)")
    parser.add_argument("--evaluate", type=int, default=17_000, help="evaluation questions (default: 17,000)")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
