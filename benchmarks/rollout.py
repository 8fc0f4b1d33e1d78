"""Our rollout actor against a bare AsyncLLM, with the same prompts and sampling and only final outputs.

    python -m benchmarks.rollout [--quick] [--json]

`ours` is what the rollout pool does: one Ray call per group, which carries the image, and answers as `Completions` with
decoded texts. Each side has its own engine, with the run's engine arguments. Every round takes new prompts, since the
prefix cache would speed up a repeated one.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray

from benchmarks.helpers.common import Result, command, interleaved, median_seconds, progress
from benchmarks.helpers.shapes import Shape, checkpoint, open_stream, run_config
from benchmarks.helpers.sides import bare
from benchmarks.helpers.sides.generating import generate_all
from medr1_ray.base.code_digest import code_digest
from medr1_ray.cluster.connect import connect
from medr1_ray.config import Config
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.family import checkpoint_name
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import Sampling
from medr1_ray.weights.buckets import BUCKET_BYTES, write_buckets

SHAPES = (
    Shape("tiny", 32, 8, 12),
    Shape("tiny", 32, 8, 64),
    Shape("bench30m", 8, 8, 12),
    Shape("bench30m", 8, 8, 64),
)


def our_actor(config: Config) -> ray.actor.ActorHandle:
    """Start a rollout actor that serves the checkpoint's weights as policy version 0."""
    import torch

    actor = ray.remote(RolloutActor).options(max_concurrency=1000).remote(EngineSettings.of(config), 0, code_digest())
    model = load_model(config.model.folder, torch.float32, config.model)
    named = ((checkpoint_name(name), parameter) for name, parameter in model.named_parameters())
    update = write_buckets(named, 0, BUCKET_BYTES, ray.put)
    ray.get(actor.load_weights.remote(update))
    return actor


def measure(shape: Shape, rounds: int) -> Result:
    config = run_config(shape, "rollout")
    stream = open_stream(config)
    sampling = Sampling(shape.group_size, shape.tokens, 1.0)
    tokens = shape.prompts * shape.group_size * shape.tokens
    with bare.Worker(bare.engine, config, 1) as engine:
        actor = our_actor(config)
        engine.wait()
        progress(f"{shape}: both engines are up")

        def ours() -> float:
            prompts = stream.take(shape.prompts)
            start = time.perf_counter()
            answers = generate_all(actor, prompts, sampling)
            seconds = time.perf_counter() - start
            assert sum(answer.token_ids.size for answer in answers) == tokens
            return seconds

        def theirs() -> float:
            engine.ask((stream.take(shape.prompts), sampling))
            answer = engine.wait()
            assert answer.value == tokens
            return answer.seconds

        seconds = interleaved({"ours": ours, "theirs": theirs}, rounds)
        ray.get(actor.shutdown.remote())
        ray.kill(actor)
    progress(f"{shape}: {seconds}")
    our_rate, their_rate = (tokens / median_seconds(seconds[side]) for side in ("ours", "theirs"))
    return Result(
        f"rollout, {shape}",
        our_rate,
        their_rate,
        "tokens/s",
        our_rate / their_rate,
        our_rate / their_rate,
        {"threads": config.rollout.threads, "rounds": rounds, "model": str(checkpoint(shape.model).name)},
    )


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    shapes = SHAPES[:1] if arguments.quick else SHAPES
    if arguments.only:
        shapes = tuple(shape for shape in SHAPES if arguments.only in str(shape))
    connect(run_config(shapes[0], "rollout"))
    try:
        return [measure(shape, _rounds(shape, arguments.quick)) for shape in shapes]
    finally:
        ray.shutdown()


def _rounds(shape: Shape, quick: bool) -> int:
    """Return more rounds for the tiny model: one takes a second, and single rounds differ by a third."""
    few, many = (3, 9) if quick else (5, 25)
    return many if shape.model == "tiny" else few


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="only shapes whose name contains this, e.g. 'tiny 32 x G=8 x 64'")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
