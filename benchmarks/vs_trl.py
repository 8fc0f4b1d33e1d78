"""Whole GRPO steps against TRL's GRPOTrainer, in completions per second; TRL's steps run before and after ours.

    python -m benchmarks.vs_trl --trl-python /path/to/env/bin/python [--trl-vllm] [--quick] [--json]

TRL runs in an environment of its own (`pip install trl==1.16.0 transformers==5.19.0`, with the same torch), since its
dependencies are not the package's. Both sides get the same weights, prompts, images, group size, completion length
(min = max), float32, beta, AdamW, clipping and reward. TRL's settings: all cores, no gradient checkpointing, the whole
batch at once (`--trl-micro-batches` splits it), transformers' generate with its cache; with `--trl-vllm`, a vLLM engine
in its process (its environment then needs the package's vLLM too).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.helpers.common import Result, command, median_seconds, progress
from benchmarks.helpers.shapes import ROOT, WORK, Shape, checkpoint, open_stream
from benchmarks.helpers.sides.session_steps import our_steps, step_config
from medr1_ray.config import Config
from medr1_ray.data.prompt_templates import user_text

PROMPTS = 64
SHAPES = (
    Shape("bench30m", 4, 8, 12),
    Shape("bench30m", 4, 16, 12),
    Shape("bench30m", 4, 4, 12),
    Shape("bench30m", 4, 8, 64),
    Shape("tiny", 32, 8, 12),
    Shape("tiny", 32, 4, 12),
    Shape("tiny", 32, 16, 12),
    Shape("tiny", 32, 8, 64),
)
QUICK = (Shape("tiny", 32, 8, 12),)
# For --trl-vllm: the engine runs in TRL's own process and does not bind that process's threads to cores.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def trl_steps(
    config: Config, shape: Shape, arguments: argparse.Namespace
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start a TRL process; each call runs one of its optimizer steps and returns what `trl_worker.py` printed of it."""
    settings = {
        "model": str(checkpoint(shape.model)),
        "prompts": str(write_prompts(config, shape)),
        "prompts_per_step": shape.prompts,
        "group_size": shape.group_size,
        "tokens": shape.tokens,
        "beta": config.loss.kl_beta,
        "threads": arguments.threads,
        "micro_batches": arguments.trl_micro_batches,
        "vllm": arguments.trl_vllm,
    }
    process = subprocess.Popen(
        [arguments.trl_python, str(ROOT / "benchmarks" / "helpers" / "sides" / "trl_worker.py"), json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(WORK / "trl.log").open("w"),
        env={
            **os.environ,
            **_ENVIRONMENT,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(arguments.threads),
        },
        text=True,
    )
    assert process.stdin is not None  # both are pipes
    assert process.stdout is not None
    ask, answers = process.stdin, process.stdout

    def answer() -> dict[str, Any]:
        line = answers.readline()
        if not line:
            raise RuntimeError(f"TRL's process ended; see {WORK / 'trl.log'}")
        return dict(json.loads(line))

    def step() -> dict[str, Any]:
        ask.write("step\n")
        ask.flush()
        return answer()

    try:
        answer()  # the first line says that TRL is ready
        yield step
    finally:
        process.kill()
        process.wait()


def write_prompts(config: Config, shape: Shape) -> Path:
    """Write the run's first prompts as TRL takes them: texts, and images as resized by the run. Return the folder."""
    folder = WORK / "prompts" / shape.model
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, prompt in enumerate(open_stream(config).take(PROMPTS)):
        Image.fromarray(prompt.image).save(folder / f"{number}.png")
        rows.append({"text": user_text(prompt.question, config.mode, config.prompt), "image": f"{number}.png"})
    (folder / "prompts.json").write_text(json.dumps(rows))
    return folder


def measure(shape: Shape, rounds: int, max_staleness: int, arguments: argparse.Namespace) -> Result:
    phases: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    config = step_config(shape, "vs_trl", max_staleness, arguments.threads, "parity.gap_mean_limit=0.01")
    with trl_steps(config, shape, arguments) as trl_step, our_steps(config) as steps:
        progress(f"{shape}: both sides are up")

        def ours() -> float:
            step = steps.take()
            phases["ours"].append(step.phases)
            return step.seconds

        def theirs() -> float:
            found = trl_step()
            phases["theirs"].append(found["phases"])
            return float(found["seconds"])

        seconds = blocks(ours, steps.settle, theirs, rounds)
    progress(f"{shape}: {seconds}")
    completions = shape.prompts * shape.group_size
    our_seconds, their_seconds = (median_seconds(seconds[side]) for side in ("ours", "theirs"))
    return Result(
        f"GRPO step, {shape}, max_staleness {max_staleness}",
        completions / our_seconds,
        completions / their_seconds,
        "completions/s",
        their_seconds / our_seconds,
        None,
        {
            "beta": config.loss.kl_beta,
            "threads": arguments.threads,
            "trl_micro_batches": arguments.trl_micro_batches,
            "trl_generates_with": "vLLM" if arguments.trl_vllm else "transformers",
            "rounds": rounds,
            "seconds": {"ours": our_seconds, "theirs": their_seconds},
            "phases_last_step": {side: found[-1] for side, found in phases.items()},
        },
    )


def blocks(
    ours: Callable[[], float], settle: Callable[[], None], theirs: Callable[[], float], rounds: int
) -> dict[str, list[float]]:
    """Time TRL's steps before and after a block of ours, whose first steps fill the pipeline and are not counted.

    Alternating single steps would favour ours: engines start on the next step's groups as soon as they have the
    weights, and would generate them during TRL's turn.
    """
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    theirs()
    found["theirs"] += [theirs() for _ in range(rounds)]
    for _ in range(4):
        ours()
    found["ours"] = [ours() for _ in range(3 * rounds)]
    settle()
    found["theirs"] += [theirs() for _ in range(rounds)]
    return found


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    if shutil.which(arguments.trl_python) is None:
        raise ValueError(
            f"--trl-python={arguments.trl_python} is not an executable; create an environment with TRL "
            "(benchmarks/RESULTS.md says how) and give the path of its python"
        )
    shapes = QUICK if arguments.quick else SHAPES
    if arguments.only:
        shapes = tuple(shape for shape in SHAPES if arguments.only in str(shape))
    rounds = 1 if arguments.quick else 3
    staleness = [0, 2] if arguments.both else [0]
    return [measure(shape, rounds, k, arguments) for shape in shapes for k in staleness]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trl-python", default="trl_env/bin/python", help="python of TRL's environment")
    parser.add_argument("--only", default="", help="only shapes whose name contains this, e.g. 'tiny 32 x G=8'")
    parser.add_argument("--both", action="store_true", help="also measure asynchronous steps (max_staleness 2)")
    parser.add_argument(
        "--trl-vllm", action="store_true", help="TRL generates with a vLLM engine in its process"
    )
    parser.add_argument("--trl-micro-batches", type=int, default=1, help="micro-batches per step of TRL (default: 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores of each side (default: all)")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
