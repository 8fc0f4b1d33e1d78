"""Learner update with shared prompts, against plain rows and against bare forward and backward passes.

    python -m benchmarks.learner [--quick] [--json]

`ours` is a whole update of the learner rank (patches, packing, forward, backward, DeepSpeed's optimizer step). In turns
with it run the same update on plain rows (one per completion), and bare forward and backward passes over tensors that
were packed beforehand. Each side runs in its own process, so that peak memory is measured per side; it is reported
with the estimate of `--dry-run`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.helpers.common import Result, command, interleaved, median_seconds, progress
from benchmarks.helpers.shapes import Shape, random_groups, run_config, update_request
from benchmarks.helpers.sides import bare
from medr1_ray.config import Config
from medr1_ray.learner.actor import LearnerActor
from medr1_ray.learner.messages import RankSettings
from medr1_ray.model.packing import PackedBatch
from medr1_ray.model.shape import read_shape
from medr1_ray.sizing.memory import learner_parts

SHAPES = (
    Shape("bench30m", 8, 8, 12),
    Shape("bench30m", 8, 8, 64),
    Shape("bench30m", 8, 4, 12),
    Shape("bench30m", 8, 16, 12),
    Shape("tiny", 32, 8, 12),
)


class PlainLearnerActor(LearnerActor):
    """The same rank with one row per completion."""

    def _pack(self, groups: Any, images: Any, plain: bool) -> PackedBatch:
        return super()._pack(groups, images, plain=True)


def learner(config: Config, shape: Shape, plain: bool) -> bare.Turn:
    """Prepare a learner rank; a turn is a whole update, always of version 0 to keep the learning rate the same."""
    actor = (PlainLearnerActor if plain else LearnerActor)(RankSettings.of(config), 0, "learner-0")
    actor.start(actor.rendezvous_file())
    request = update_request(config, random_groups(config, shape), shape, plain)
    return lambda _: actor.update(request) and None


def measure(shape: Shape, threads: int, rounds: int) -> Result:
    config = run_config(shape, "learner", [f"learner.threads={threads}", "loss.kl_beta=0"])
    peaks: dict[str, int] = {}
    processor: dict[str, list[float]] = {side: [] for side in ("shared", "plain", "bare")}
    with ExitStack() as stack:
        workers = {
            "shared": stack.enter_context(bare.Worker(learner, config, shape, False)),
            "plain": stack.enter_context(bare.Worker(learner, config, shape, True)),
            "bare": stack.enter_context(
                bare.Worker(bare.model, config, shape, random_groups(config, shape), False)
            ),
        }
        for worker in workers.values():
            worker.wait()
        progress(f"{shape}: all sides are up")

        def turn(side: str) -> Callable[[], float]:
            def run() -> float:
                workers[side].ask(None)
                answer = workers[side].wait()
                peaks[side] = answer.peak_bytes
                processor[side].append(answer.processor_seconds)
                return answer.seconds

            return run

        times = interleaved({side: turn(side) for side in workers}, rounds)
    progress(f"{shape}: {times}")
    seconds = {side: median_seconds(values) for side, values in times.items()}
    return Result(
        f"learner update, {shape}",
        seconds["shared"],
        seconds["plain"],
        "s",
        seconds["plain"] / seconds["shared"],
        seconds["bare"] / seconds["shared"],
        {
            "threads": threads,
            "micro_batch_tokens": config.learner.micro_batch_tokens,
            "rounds": rounds,
            "bare_seconds": seconds["bare"],
            # Less disturbed by other work on the machine than the wall clock. The first value is the warm-up's.
            "processor_seconds": {side: median_seconds(values[1:]) for side, values in processor.items()},
            "peak_bytes": peaks,
            "peak_bytes_estimated": sum(
                part.bytes for part in learner_parts(config, read_shape(config.model.folder))
            ),
        },
    )


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    shapes = SHAPES[-1:] if arguments.quick else SHAPES
    if arguments.only:
        shapes = tuple(shape for shape in SHAPES if arguments.only in str(shape))
    return [measure(shape, arguments.threads, 1 if arguments.quick else 2) for shape in shapes]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores of each side (default: all)")
    parser.add_argument("--only", default="", help="only shapes whose name contains this, e.g. 'x G=8 x 64'")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
