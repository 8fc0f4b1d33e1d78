"""Weight sync from the learner's tensors to a serving engine, compared with a plain copy of the same bytes.

    python -m benchmarks.weight_sync [--quick] [--json]

`ours` is everything between the learner's tensors and the engine's next token: buckets, digests, transport, checks and
loading. `theirs`, in turns with it, is one copy of the same bytes into newly allocated memory. Requests are in flight
during each sync, except with `qwen2vl_2b`: an engine loads weights between two steps, and on a CPU without bfloat16
arithmetic one step with one prompt takes minutes. `paused_seconds` is the time for which the engine was paused.
`qwen2vl_2b` (4.4 GB, held five times in memory) needs a machine to itself.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray
import torch

from benchmarks.helpers.common import Result, command, interleaved, median_seconds, progress
from benchmarks.helpers.shapes import Shape, open_stream, run_config, tensors_of
from benchmarks.helpers.sides.bare import plain_copy
from medr1_ray.base.code_digest import code_digest
from medr1_ray.cluster.connect import connect
from medr1_ray.config import Config
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import GroupRequest, Sampling
from medr1_ray.weights.buckets import BUCKET_BYTES, write_buckets
from medr1_ray.weights.messages import LoadReport

SHAPES = (Shape("tiny", 4, 8, 256), Shape("bench30m", 4, 8, 128), Shape("qwen2vl_2b", 1, 2, 1))


def settings_of(shape: Shape) -> Config:
    overrides = ["rollout.max_prompt_tokens=320"]
    if shape.model == "qwen2vl_2b":
        overrides += ["model.dtype=bfloat16", "rollout.engine={load_format: dummy}"]
    return run_config(shape, "weight_sync", overrides)


def measure(shape: Shape, rounds: int) -> Result:
    config = settings_of(shape)
    actor = ray.remote(RolloutActor).options(max_concurrency=1000).remote(EngineSettings.of(config), 0, code_digest())
    ray.get(actor.ping.remote())
    tensors = tensors_of(config)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    stream = open_stream(config)
    sampling = Sampling(shape.group_size, shape.tokens, 1.0)
    reports: list[LoadReport] = []
    in_flight = shape.prompts if shape.model != "qwen2vl_2b" else 0
    progress(f"{shape}: the engine is up; {size / 1e6:.0f} MB of weights")

    def send(version: int) -> None:
        update = write_buckets(tensors.items(), version, BUCKET_BYTES, ray.put)
        reports.append(ray.get(actor.load_weights.remote(update)))

    send(0)

    def ours() -> float:
        requests = [GroupRequest(prompt.id, prompt, sampling) for prompt in stream.take(in_flight)]
        flying = actor.generate.remote(requests)
        time.sleep(0.5)  # let generation start
        tensors[next(iter(tensors))].add_(0.001)  # or all updates would carry the same weights
        start = time.perf_counter()
        send(len(reports))
        seconds = time.perf_counter() - start
        done = len(ray.get(flying))
        while done < len(requests):
            done += len(ray.get(actor.generate.remote([])))
        return seconds

    seconds = interleaved({"ours": ours, "theirs": plain_copy(tensors, size)}, rounds)
    ray.get(actor.shutdown.remote())
    ray.kill(actor)
    progress(f"{shape}: {seconds}")
    our_seconds, copy_seconds = (median_seconds(seconds[side]) for side in ("ours", "theirs"))
    return Result(
        f"weight sync, {shape.model}",
        our_seconds,
        copy_seconds,
        "s",
        copy_seconds / our_seconds,
        None,
        {
            "bytes": size,
            "copies": our_seconds / copy_seconds,
            "paused_seconds": median_seconds([report.paused_seconds for report in reports[-rounds:]]),
            "requests_in_flight": in_flight * shape.group_size,
            "dtype": config.model.dtype,
            "rounds": rounds,
        },
    )


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    shapes = SHAPES[:2] if arguments.quick else SHAPES
    if arguments.only:
        shapes = tuple(shape for shape in SHAPES if arguments.only in str(shape))
    torch.set_num_threads(1)
    connect(settings_of(shapes[0]))
    try:
        return [measure(shape, 3 if arguments.quick else 5) for shape in shapes]
    finally:
        ray.shutdown()


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="only shapes whose name contains this, e.g. 2b")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
