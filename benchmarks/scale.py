"""Scaling of the driver: how many engines one driver keeps busy.

    python -m benchmarks.scale [--quick] [--json]

Measured: the real rollout pool, prompt stream, encoder, reward actor and ledger, with 1 to 64 rollout actors that are
processes without an engine (`medr1_ray/rollout/fake_actor.py`): each has 16 groups at once, as a GPU's engine has, and
answers one every `--latency-seconds`, 20 ms unless told otherwise. Images have Med-R1's size; all that are asked about
fit into the encoder's cache, so that no core decodes. `of_limit` is the groups consumed per second divided by the
groups that the engines could answer. For each group: the driver's processor milliseconds, the calls that it makes, and
the bytes that all processes send each other over the network's loopback (pixels travel in shared memory).

Above 64 and up to 1,000 engines it is a SIMULATION: a driver that handles one group after another, taking the CPU
seconds per group that were measured with the most engines, and engines that wait for it and exceed their latency by the
overhead measured with the fewest. Simulated results say so in their names; the simulated figure for the largest
measured size is reported too, for comparison with the measured one.
"""

from __future__ import annotations

import argparse
import heapq
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.helpers.common import Result, command, progress
from benchmarks.helpers.shapes import WORK, Shape, open_stream, run_config
from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.config import Config
from medr1_ray.encoders.handle import EncoderActors, RemoteEncoder
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.rollout.fake_actor import FakeBehaviour, fake_launcher
from medr1_ray.weights.messages import WeightBucket, WeightUpdate

MEASURED = (1, 4, 16, 64)
SIMULATED = (64, 128, 256, 512, 1000)
GROUPS_AT_ONCE = 16
GROUPS_PER_ACTOR_AND_STEP = 32
SPREAD = 0.5
STEPS = 5
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Measured:
    """Groups per second; and for each group the driver's CPU seconds, its calls, and the bytes over the loopback."""

    groups_per_second: float
    driver_seconds_per_group: float
    calls_per_group: float
    bytes_per_group: float


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


def run_pool(config: Config, actors: int, latency_seconds: float) -> Measured:
    """Run some steps of the training loop without a learner: take groups, fill ahead, publish a version."""
    calls = CountedCalls()
    launch = fake_launcher(FakeBehaviour(group_seconds=GROUPS_AT_ONCE * latency_seconds, spread=SPREAD))
    rollout_actors = RolloutActors(config, calls, progress, launch)
    rewards = RewardActors(config, calls, progress)
    rollout_actors.wait_until_up()
    rewards.wait_until_up()
    progress(f"{actors} fake rollout actors are up")
    ledger = Ledger(time.monotonic)
    stream = open_stream(config, RemoteEncoder(EncoderActors(config), config))
    pool = RolloutPool(config, rollout_actors, rewards, stream, ledger)
    buckets: tuple[WeightBucket, ...] = ()
    groups, start, processor, called, sent = 0, 0.0, 0.0, 0, 0
    pool.load_weights(WeightUpdate(0, buckets, "0"))
    pool.fill(versions_ahead=0)
    for version in range(WARM_UP_STEPS + STEPS):
        if version == WARM_UP_STEPS:
            groups, start, processor = 0, time.perf_counter(), time.process_time()
            called, sent = calls.count, loopback_bytes()
        groups += len(pool.take(version))
        pool.fill(versions_ahead=1)
        pool.load_weights(WeightUpdate(version + 1, buckets, str(version + 1)))
        pool.drain_spans()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    per_group = (each / groups for each in (processor, calls.count - called, loopback_bytes() - sent))
    return Measured(groups / seconds, *per_group)


def simulate(engines: int, latency_seconds: float, driver_seconds: float, in_flight: int) -> float:
    """Return the groups per second of a driver and engines, each serving one group at a time in order of arrival.

    Issuing a group takes half of `driver_seconds`, taking in its answer the other half. A finished group is issued
    again at once, so that `in_flight` groups circulate. Deterministic; weight sync is not modelled.
    """
    driver_free = 0.0
    engine_free = [0.0] * engines
    # (time, order, kind): "issue" asks the driver to issue a group, "answer" to take one in. `order` breaks ties.
    events = [(0.0, i, "issue") for i in range(in_flight)]
    heapq.heapify(events)
    order, answered, wanted, warm = in_flight, 0, 20 * in_flight, 5 * in_flight
    start = 0.0
    while answered < wanted:
        now, _, event = heapq.heappop(events)
        driver_free = max(driver_free, now) + driver_seconds / 2
        order += 1
        if event == "issue":
            free = heapq.heappop(engine_free)
            done = max(free, driver_free) + latency_seconds
            heapq.heappush(engine_free, done)
            heapq.heappush(events, (done, order, "answer"))
        else:
            answered += 1
            if answered == warm:
                start = driver_free
            heapq.heappush(events, (driver_free, order, "issue"))
    return (wanted - warm) / (driver_free - start)


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    sizes = sorted(arguments.sizes or (MEASURED[:3] if arguments.quick else MEASURED))
    latency = arguments.latency_seconds
    results = []
    for actors in sizes:
        config = scale_config(actors)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            measured = run_pool(config, actors, latency)
        finally:
            ray.shutdown()
        cost = {
            "driver_milliseconds_per_group": 1000 * measured.driver_seconds_per_group,
            "calls_per_group": measured.calls_per_group,
            "loopback_bytes_per_group": measured.bytes_per_group,
        }
        name = f"driver, {actors} fake engines"
        results.append(_result(name, measured.groups_per_second, actors, latency, cost))
        if actors == sizes[0]:
            overhead = max(0.0, actors / measured.groups_per_second - latency)
        progress(f"{actors}: {results[-1]}")
    calibration = {
        "calibrated_on": f"{sizes[0]} and {sizes[-1]} measured",
        "driver_seconds": measured.driver_seconds_per_group,
        "engine_overhead_seconds": overhead,
    }
    results.reverse()  # the largest measured size first: `command` makes the first result its headline
    for engines in (sizes[-1], *(size for size in SIMULATED if size > sizes[-1])):
        in_flight = 2 * GROUPS_PER_ACTOR_AND_STEP * engines
        rate = simulate(engines, latency + overhead, measured.driver_seconds_per_group, in_flight)
        results.append(_result(f"driver, {engines} engines, SIMULATED", rate, engines, latency, calibration))
    return results


def scale_config(actors: int) -> Config:
    """Return settings with Med-R1's image and group size; engines take no core."""
    shutil.rmtree(WORK / "runs" / "scale", ignore_errors=True)
    shape = Shape("bench30m", GROUPS_PER_ACTOR_AND_STEP * actors, 8, 64)
    at_once = f"rollout.engine={{max_num_seqs: {shape.group_size * GROUPS_AT_ONCE}}}"
    engines = [f"rollout.actors={actors}", "rollout.cpus_per_actor=0.001", at_once]
    return run_config(shape, "scale", ["train.max_staleness=1", *engines])


def _result(
    name: str, rate: float, engines: int, latency_seconds: float, settings: Mapping[str, float | str]
) -> Result:
    limit = engines / latency_seconds
    given = {"latency_seconds": latency_seconds, **settings}
    return Result(name, rate, limit, "groups/s", rate / limit, rate / limit, given)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latency-seconds", type=float, default=0.02, help="an engine's time for a group (0.02)")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"numbers of fake engines to measure (default {MEASURED})")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
