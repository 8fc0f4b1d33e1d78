"""Scaling of the driver: how many engines one driver keeps busy, and what holds up clusters of 8 to 1,000 GPUs.

    python -m benchmarks.scale [--quick] [--json] [--sizes 16] [--latency-seconds 0.02] [--hardware FILE]

Measured: the real rollout pool, prompt stream, encoder, reward actor and ledger, with 1 to 64 rollout actors that are
processes without an engine (`medr1_ray/rollout/fake_actor.py`): each has 16 groups at once, as a GPU's engine has, and
answers one every `--latency-seconds`, 20 ms unless told otherwise. Images have Med-R1's size; all that are asked about
fit into the encoder's cache, so that no core decodes. `of the limit` is the groups consumed per second divided by the
groups that the engines could answer. For each group: the processor milliseconds of driver and reward actor, the calls
that the driver makes, and the bytes that all processes send each other over the network's loopback (pixels travel in
shared memory). What an encoder takes for a question with a file of 384 x 384 pixels is measured by itself.

SIMULATED, for as many engines as were measured at most and up to 1,000: a driver that handles one group after another,
at the cost measured with the most engines, and engines that wait for it and exceed their latency by the overhead
measured with the fewest.

CALCULATED, for 2B No-Think and 2B Think on 8 to 1,000 GPUs in their fastest split (`helpers/scale/limits.py`): the
groups a second that engines, learner, weight sync, driver, encoder actors, the network that their images take, and
reward actors could each sustain; the lowest, in words, and what to change. Costs are measured in this run, with the
largest number of fake engines, each as fast as the mode's is estimated to be: slower ones answer fewer groups in a
call, which costs the driver more. Engines and learner are estimates on the rates of `--hardware`, measured in no
training on GPUs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.helpers.common import Result, command, progress
from benchmarks.helpers.scale.limits import (
    GROUPS_PER_GPU,
    MODES,
    Cluster,
    Costs,
    clusters,
    limits,
    table,
    verdict,
)
from benchmarks.helpers.scale.measuring import (
    GROUPS_PER_ACTOR_AND_STEP,
    Measured,
    encoder_seconds,
    run_pool,
    scale_config,
)
from benchmarks.helpers.scale.simulation import simulate
from benchmarks.helpers.shapes import ROOT
from medr1_ray.config import as_path

MEASURED = (1, 4, 16, 64)
SIMULATED = (64, 128, 256, 512, 1000)
HARDWARE = ROOT / "configs" / "hardware" / "h100_l40s.yaml"


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    sizes = sorted(arguments.sizes or (MEASURED[:3] if arguments.quick else MEASURED))
    latency = arguments.latency_seconds
    planned = {mode.name: clusters(mode, arguments.hardware) for mode in MODES}  # first, since it may be refused
    measured = [measure(engines, latency) for engines in sizes]
    fewest, most = measured[0], measured[-1]
    # Slower engines answer fewer groups in a call.
    of_mode = {name: measure(most.engines, plan[0].engine_seconds) for name, plan in planned.items()}
    print(measured_table([*measured, *of_mode.values()]))
    calculated = calculate(planned, of_mode, encoder_seconds(), arguments.hardware)
    results = [
        _result(f"driver, {found.engines} fake engines", found.groups_per_second, found.engines, latency, asdict(found))
        for found in reversed(measured)  # `command` makes the first its headline
    ]
    results[0] = replace(results[0], settings={**results[0].settings, "calculated": calculated})
    overhead = max(0.0, fewest.engines / fewest.groups_per_second - latency)
    calibration = {
        "calibrated_on": f"{sizes[0]} and {sizes[-1]} measured",
        "driver_seconds": most.driver_seconds,
        "engine_overhead_seconds": overhead,
    }
    for engines in (sizes[-1], *(size for size in SIMULATED if size > sizes[-1])):
        in_flight = 2 * GROUPS_PER_ACTOR_AND_STEP * engines
        rate = simulate(engines, latency + overhead, most.driver_seconds, in_flight)
        results.append(_result(f"driver, {engines} engines, SIMULATED", rate, engines, latency, calibration))
    return results


def measure(engines: int, engine_seconds: float) -> Measured:
    """Run the pool with so many fake engines, in a Ray of its own."""
    config = scale_config(engines)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = run_pool(config, engines, engine_seconds)
    finally:
        ray.shutdown()
    progress(str(found))
    return found


def measured_table(measured: Sequence[Measured]) -> str:
    lines = [
        "\nMEASURED with fake engines, each of which answers a group in so many ms; of each group:",
        "engines     ms  groups/s  of the limit  driver, processor ms  reward actor, ms  calls   bytes",
    ]
    for found in measured:
        of_limit = found.groups_per_second * found.engine_seconds / found.engines
        lines.append(
            f"{found.engines:7}  {1000 * found.engine_seconds:5.0f}  {found.groups_per_second:8.1f}  {of_limit:12.2f}  "
            f"{1000 * found.driver_seconds:20.2f}  {1000 * found.reward_seconds:16.2f}  {found.calls:5.2f}  "
            f"{found.sent_bytes:6,.0f}"
        )
    return "\n".join(lines)


def calculate(
    planned: Mapping[str, list[Cluster]], measured: Mapping[str, Measured], encoder: float, hardware: Path
) -> dict[str, Any]:
    """Print what holds up each mode's clusters, at the costs `measured` with engines as fast as the mode's and an
    encoder's seconds for a question; return it for JSON."""
    print(
        "\nCALCULATED: groups/s that each part could sustain by itself, with steps of "
        f"{GROUPS_PER_GPU} groups for each GPU.\n"
        "Driver and rewards: as measured with engines as fast as the mode's. Encoders: "
        f"{1000 * encoder:.1f} ms for a question and its image.\n"
        f"Engines, learner, sync: estimates on the rates of {hardware.name}; no training on GPUs has been measured.\n"
        "`step`: engines and learner at the same time, then the sync. `all`: the step and what is beside it, at once."
    )
    calculated = {}
    for mode in MODES:
        sizes, found = planned[mode.name], measured[mode.name]
        costs = Costs(found.driver_seconds, encoder, found.reward_seconds, found.sent_bytes)
        said = verdict(sizes, costs)
        engine = f"{1000 * sizes[0].engine_seconds:.0f} ms a group of an engine"
        title = f"{mode.name}, {mode.completion_tokens} tokens a completion, {engine}"
        print("\n".join(["", title, table(sizes, costs), *(f"- {line}" for line in said)]))
        rows = [{"gpus": size.gpus, "ranks": size.split.ranks, **asdict(limits(size, costs))} for size in sizes]
        calculated[mode.name] = {"bottleneck": said, "measured": asdict(found), "clusters": rows}
    print()
    return calculated


def _result(
    name: str, rate: float, engines: int, latency_seconds: float, settings: Mapping[str, float | str]
) -> Result:
    limit = engines / latency_seconds
    given = {"latency_seconds": latency_seconds, **settings}
    return Result(name, rate, limit, "groups/s", rate / limit, rate / limit, given)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latency-seconds", type=float, default=0.02, help="an engine's time for a group (0.02)")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"numbers of fake engines to measure (default {MEASURED})")
    parser.add_argument("--hardware", type=as_path, default=HARDWARE, help="rates of GPUs (default: h100_l40s.yaml)")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
