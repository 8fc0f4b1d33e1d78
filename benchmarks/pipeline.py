"""Whole training steps, synchronous and asynchronous, against the sum and the maximum of their bare parts.

    python -m benchmarks.pipeline [--quick] [--json]

`ours` is the median step of a session (the loop of `medr1_ray/train.py`). The bare parts, which take turns with two
synchronous steps: AsyncLLMs that generate a step's completions in parallel, as many as the run has engines; forward,
backward, the reference's forward, clipping and AdamW on a step's packed tensors, with torch alone; one plain copy of
the weights. `of_limit` is the sum of the parts divided by the synchronous step, and the larger of generation and
learning divided by the asynchronous step (not measured with `--quick`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch

from benchmarks.helpers.common import Result, command, interleaved, median_seconds, progress
from benchmarks.helpers.shapes import Shape, checkpoint, open_stream, random_groups, tensors_of
from benchmarks.helpers.sides import bare
from benchmarks.helpers.sides.session_steps import our_steps, step_config
from medr1_ray.types import Sampling

SHAPES = (Shape("bench30m", 4, 8, 12), Shape("tiny", 32, 8, 12))
STEPS = 2
"""Timed steps in each of our turns."""


def measure(shape: Shape, threads: int, rounds: int, synchronous_only: bool) -> list[Result]:
    config = step_config(shape, "pipeline", 0, threads)
    stream = open_stream(config)
    sampling = Sampling(shape.group_size, shape.tokens, config.rollout.temperature)
    with ExitStack() as stack:
        engines = [stack.enter_context(bare.Worker(bare.engine, config, 100 + i)) for i in range(threads)]
        model = stack.enter_context(bare.Worker(bare.model, config, shape, random_groups(config, shape), True))
        for worker in (*engines, model):
            worker.wait()
        steps = stack.enter_context(our_steps(config))
        progress(f"{shape}: all sides are up")

        def generate() -> float:
            prompts = stream.take(shape.prompts)
            start = time.perf_counter()
            for i, engine in enumerate(engines):
                engine.ask((prompts[i::threads], sampling))
            for engine in engines:
                engine.wait()
            return time.perf_counter() - start

        def learn() -> float:
            model.ask(None)
            return model.wait().seconds

        def train() -> float:
            steps.take()  # not timed: `settle` left its groups ready
            seconds = [steps.take().seconds for _ in range(STEPS)]
            steps.settle()
            return median_seconds(seconds)

        tensors = tensors_of(config)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        sides: dict[str, Callable[[], float]] = {
            "generation": generate,
            "learning": learn,
            "copy": bare.plain_copy(tensors, size),
            "step": train,
        }
        times = interleaved(sides, rounds)
    progress(f"{shape}: {times}")
    seconds = {side: median_seconds(values) for side, values in times.items()}
    whole = seconds.pop("step")
    total = sum(seconds.values())
    settings = {"threads": threads, "rounds": rounds, "model": checkpoint(shape.model).name, "parts": seconds}
    synchronous = Result(f"synchronous step, {shape}", whole, total, "s", *_twice(total / whole), settings)
    if synchronous_only:
        return [synchronous]
    with our_steps(step_config(shape, "pipeline", 2, threads)) as steps:
        for _ in range(4):  # fill the pipeline
            steps.take()
        asynchronous = median_seconds([steps.take().seconds for _ in range(STEPS * rounds)])
    largest = max(seconds.values())
    return [
        synchronous,
        Result(f"asynchronous step, {shape}", asynchronous, largest, "s", *_twice(largest / asynchronous), settings),
    ]


def _twice(fraction: float) -> tuple[float, float]:
    """Return `ratio` and `of_limit`, which are equal here: the other side is the limit."""
    return fraction, fraction


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    torch.set_num_threads(1)
    shapes = SHAPES[1:] if arguments.quick else SHAPES
    if arguments.only:
        shapes = tuple(shape for shape in SHAPES if arguments.only in str(shape))
    return [
        result
        for shape in shapes
        for result in measure(shape, arguments.threads, _rounds(shape, arguments.quick), arguments.quick)
    ]


def _rounds(shape: Shape, quick: bool) -> int:
    """Return more rounds for the tiny model: one takes twelve seconds, and single parts differ by a third."""
    few, many = (2, 3) if quick else (5, 15)
    return many if shape.model == "tiny" else few


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="only shapes whose name contains this, e.g. 'bench30m'")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores to use (default: all)")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
