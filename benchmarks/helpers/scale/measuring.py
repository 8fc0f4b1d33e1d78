"""What a group costs: the real pool, stream, encoder, reward actor and ledger, with rollout actors without engines."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.helpers.common import progress
from benchmarks.helpers.data.made import make
from benchmarks.helpers.scale.limits import GROUP_SIZE
from benchmarks.helpers.shapes import WORK, Shape, open_stream, run_config
from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.config import Config
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.encoding import EncoderSettings
from medr1_ray.encoders.actor import EncoderActor, EncodingBatch
from medr1_ray.encoders.handle import EncoderActors, RemoteEncoder
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.rewards.actor import RewardActor
from medr1_ray.rollout.fake_actor import FakeBehaviour, fake_launcher
from medr1_ray.weights.messages import WeightBucket, WeightUpdate

GROUPS_AT_ONCE = 16
GROUPS_PER_ACTOR_AND_STEP = 32
SPREAD = 0.5
STEPS = 5
WARM_UP_STEPS = 2
_IMAGES = 128


@dataclass(frozen=True)
class Measured:
    """With so many fake engines, each of which takes `engine_seconds` for a group: groups per second; and for each
    group the processor seconds of the driver and of the reward actors, the driver's calls, and the bytes over the
    loopback."""

    engines: int
    engine_seconds: float
    groups_per_second: float
    driver_seconds: float
    reward_seconds: float
    calls: float
    sent_bytes: float


class CountedCalls(PendingCalls):
    """Counts what is called."""

    count = 0

    def add(self, *arguments: Any, **named: Any) -> None:
        self.count += 1
        super().add(*arguments, **named)


def loopback_bytes() -> int:
    """Return what this machine's processes have sent each other over TCP since it started (Linux)."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[0])


def processes_of(actor_class: type) -> list[psutil.Process]:
    """Return the descendants of this process that run Ray actors of this class."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::{actor_class.__name__}"):
                found.append(process)
    return found


def run_pool(config: Config, engines: int, engine_seconds: float) -> Measured:
    """Run some steps of the training loop without a learner: take groups, fill ahead, publish a version."""
    calls = CountedCalls()
    launch = fake_launcher(FakeBehaviour(group_seconds=GROUPS_AT_ONCE * engine_seconds, spread=SPREAD))
    rollout_actors = RolloutActors(config, calls, progress, launch)
    rewards = RewardActors(config, calls, progress)
    rollout_actors.wait_until_up()
    rewards.wait_until_up()
    progress(f"{engines} fake rollout actors are up")
    ledger = Ledger(time.monotonic)
    stream = open_stream(config, RemoteEncoder(EncoderActors(config), config))
    pool = RolloutPool(config, rollout_actors, rewards, stream, ledger)
    buckets: tuple[WeightBucket, ...] = ()
    groups, start, before = 0, 0.0, (0.0, 0.0, 0, 0)
    reward_processes = processes_of(RewardActor)

    def spent() -> tuple[float, float, int, int]:
        of_rewards = [process.cpu_times() for process in reward_processes]
        reward = sum(times.user + times.system for times in of_rewards)
        return time.process_time(), reward, calls.count, loopback_bytes()

    pool.load_weights(WeightUpdate(0, buckets, "0"))
    pool.fill(versions_ahead=0)
    for version in range(WARM_UP_STEPS + STEPS):
        if version == WARM_UP_STEPS:
            groups, start, before = 0, time.perf_counter(), spent()
        groups += len(pool.take(version))
        pool.fill(versions_ahead=1)
        pool.load_weights(WeightUpdate(version + 1, buckets, str(version + 1)))
        pool.drain_spans()
    seconds = time.perf_counter() - start
    driver, reward, called, sent = ((after - first) / groups for after, first in zip(spent(), before, strict=True))
    return Measured(engines, engine_seconds, groups / seconds, driver, reward, called, sent)


def scale_config(actors: int) -> Config:
    """Return settings with Med-R1's image and a group of 8; engines take no core."""
    shutil.rmtree(WORK / "runs" / "scale", ignore_errors=True)
    shape = Shape("bench30m", GROUPS_PER_ACTOR_AND_STEP * actors, GROUP_SIZE, 64)
    at_once = f"rollout.engine={{max_num_seqs: {shape.group_size * GROUPS_AT_ONCE}}}"
    engines = [f"rollout.actors={actors}", "rollout.cpus_per_actor=0.001", at_once]
    return run_config(shape, "scale", ["train.max_staleness=1", *engines])


def encoder_seconds() -> float:
    """Return the processor seconds that an encoder actor takes for a question and its image, a file of 384 x 384 pixels
    that is decoded; measured in this process, with the actor's own threads."""
    root = WORK / "scale_images"
    make(root, _IMAGES, _IMAGES)
    shape = Shape("bench30m", 1, GROUP_SIZE, 64)
    config = run_config(shape, "scale", ["data.format=omnimedvqa", f"data.root={root}"])
    questions = open_dataset(config.data).train
    encoder = EncoderActor("encoder")
    settings = EncoderSettings.of(config)
    first, rest = questions[:1], questions[1:]
    encoder.encode(EncodingBatch(settings, first, tuple(each.image_path for each in first)))  # imports, threads
    start = time.process_time()
    encoder.encode(EncodingBatch(settings, rest, tuple(each.image_path for each in rest)))
    return (time.process_time() - start) / len(rest)
