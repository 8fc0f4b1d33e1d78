"""What a driver does before its first step and in the steps, on a prepared data set, with fake engines; prints one JSON
object. `benchmarks/large_data.py` runs it as a process of its own, whose peak memory is then the driver's."""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path

import ray

from benchmarks.helpers.common import progress
from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.data.stream import PromptStream
from medr1_ray.encoders.handle import EncoderActors, RemoteEncoder
from medr1_ray.evaluation.blinding import EvaluationPrompts
from medr1_ray.evaluation.in_training import evaluate
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.rollout.fake_actor import FakeBehaviour, fake_launcher
from medr1_ray.run.start_checks import check_start
from medr1_ray.weights.messages import WeightUpdate

GROUP_SECONDS = 0.02


def main() -> None:
    """Take the number of steps and the settings from the command line."""
    steps, *settings = sys.argv[1:]
    config = load_config([], settings)
    took: dict[str, float] = {}
    peak: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        took[name], peak[name], start = now - start, _peak_gigabytes(), now
        progress(f"{name}: {took[name]:.1f} s, {peak[name]:.2f} GB at most until then")

    dataset = check_start(config, resume=False)
    assert dataset is not None
    lap("reading and checks")
    encoders = EncoderActors(config)
    stream = PromptStream(dataset.train, RemoteEncoder(encoders, config), config.train.seed)
    lap("stream")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    lap("Ray")
    evaluation = EvaluationPrompts(dataset.evaluation, RemoteEncoder(encoders, config), progress)
    list(islice(evaluation, config.parity.probe_prompts))
    lap("evaluation prompts")
    pool = _pool(config, stream)
    lap("fake actors")
    evaluate(pool, evaluation, config.rollout.max_tokens)
    lap("evaluation")
    processor = time.process_time()
    pool.fill(versions_ahead=0)
    for version in range(int(steps)):
        pool.take(version)
        pool.load_weights(WeightUpdate(version + 1, (), str(version + 1)))
        pool.drain_spans()
    lap("steps")
    took["steps, processor of the driver"] = time.process_time() - processor
    questions = {"train": len(dataset.train), "evaluation": len(dataset.evaluation)}
    print(json.dumps({**questions, "seconds": took, "peak gigabytes": peak}))


def _peak_gigabytes() -> float:
    """Return the largest resident set that this process has had, as the kernel counts it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e9


def _pool(config: Config, stream: PromptStream) -> RolloutPool:
    calls = PendingCalls()
    actors = RolloutActors(config, calls, progress, fake_launcher(FakeBehaviour(group_seconds=GROUP_SECONDS)))
    rewards = RewardActors(config, calls, progress)
    actors.wait_until_up()
    rewards.wait_until_up()
    pool = RolloutPool(config, actors, rewards, stream, Ledger(time.monotonic))
    pool.load_weights(WeightUpdate(0, (), "0"))
    return pool


if __name__ == "__main__":
    main()
