"""Fit the hardware's numbers on the tiny model, predict larger steps with them, and compare.

    python benchmarks/sizing_calibration.py [--repetitions 5] [--json result.json] [--hardware cpu.yaml]

Rates of products, memory and digests are measured on their own; what is left is fitted to steps of a model of the tiny
model's shape. With these numbers `medr1_ray.step_time` predicts steps of `bench30m` (hidden 512, 8 layers, vision depth
4, 392 and 196 pixels) and of the tiny model with other group sizes, none of which were fitted to. Cases are interleaved,
figures are medians. What is compared are CPU seconds (see `step_measurement.Bench.step`), which other work on the
machine disturbs less than the clock; the wall clock and the load are reported beside them. Exits with 1 where a
predicted step is more than 20 % off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import yaml
from step_measurement import Bench, Case, StepSeconds, write_model

from medr1_ray.config import Config
from medr1_ray.config_hardware import HardwareSettings
from medr1_ray.sizing import ModelShape, read_shape
from medr1_ray.step_time import step_time
from medr1_ray.step_work import StepSize, learner_work, rollout_work

TOLERANCE = 0.2
THREADS = 1
FITTED = [
    Case("tiny", 84, 8, 8, 8),
    Case("tiny", 84, 8, 8, 32),
    Case("tiny", 84, 16, 16, 16),
    Case("tiny", 84, 32, 8, 8),
    Case("tiny", 196, 8, 8, 16),
    Case("tiny", 392, 4, 8, 8),
    Case("tiny", 392, 4, 8, 32),
    Case("tiny", 392, 8, 4, 32),
    Case("tiny", 392, 2, 16, 64),
]
PREDICTED = [
    Case("tiny", 84, 8, 4, 8),
    Case("tiny", 84, 8, 16, 8),
    Case("tiny", 392, 4, 16, 12),
    Case("bench30m", 392, 4, 4, 12),
    Case("bench30m", 392, 4, 8, 12),
    Case("bench30m", 392, 4, 16, 12),
    Case("bench30m", 392, 4, 8, 32),
    Case("bench30m", 392, 2, 8, 12),
    Case("bench30m", 196, 6, 6, 24),
]


@dataclass(frozen=True)
class Measured:
    """Medians over the repetitions of one case."""

    case: Case
    busy: StepSeconds
    wall: StepSeconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write everything that was measured and predicted here")
    parser.add_argument("--hardware", type=Path, help="write the fitted settings here, for --config")
    options = parser.parse_args()
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: write_model(name, Path(scratch) / name) for name in ("tiny", "bench30m")}
        shapes = {name: read_shape(folder) for name, folder in models.items()}
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
        benches = {
            name: Bench(name, folder, Path(scratch) / f"{name}-logs", THREADS)
            for name, folder in models.items()
        }
        rates = machine_rates()
        measured = measure(benches, [*FITTED, *PREDICTED], options.repetitions)
        ray.shutdown()
    config, text_tokens = benches["tiny"].config, benches["tiny"].text_tokens
    fitted = [measured[case] for case in FITTED]
    hardware = fit(config, shapes["tiny"], text_tokens, fitted, rates)
    config = config.model_copy(update={"hardware": hardware})
    rows = [
        compare(config, shapes[case.model], text_tokens, measured[case], case in FITTED)
        for case in (*FITTED, *PREDICTED)
    ]
    worst = max(abs(row["error"]["total"]) for row in rows if not row["fitted"])
    report = {
        "hardware": hardware.model_dump(),
        "machine_rates": rates,
        "repetitions": options.repetitions,
        "threads": THREADS,
        "cores": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "worst_error_of_predicted_steps": worst,
        "cases": rows,
    }
    print_table(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.hardware:
        options.hardware.write_text(yaml.safe_dump({"hardware": hardware.model_dump()}, sort_keys=False))
    return int(worst > TOLERANCE)


def machine_rates() -> dict[str, float]:
    """Operations of matrix products, and bytes read or written, copied and digested, each a second of one core."""
    torch.set_num_threads(THREADS)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    data = np.ones(2**26, np.uint8)
    copied = data.size / _seconds(data.copy)
    return {
        "matmul_flops_per_second": 2 * 1024**3 / _seconds(lambda: a @ b),
        "memory_bytes_per_second": 2 * copied,
        "copied_bytes_per_second": copied,
        "digested_bytes_per_second": data.size / _seconds(lambda: hashlib.blake2b(data, digest_size=16)),
    }


def measure(benches: dict[str, Bench], cases: Sequence[Case], repetitions: int) -> dict[Case, Measured]:
    """All cases once to warm up, then in turn."""
    seen: dict[Case, list[tuple[StepSeconds, StepSeconds]]] = {case: [] for case in cases}
    for repetition in range(-1, repetitions):
        for case in cases:
            wall, busy = benches[case.model].step(case)
            if repetition >= 0:
                seen[case].append((wall, busy))
        print(
            f"repetition {repetition + 1}/{repetitions}, load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
            flush=True,
        )
    return {
        case: Measured(case, _medians([busy for _, busy in steps]), _medians([wall for wall, _ in steps]))
        for case, steps in seen.items()
    }


def fit(
    config: Config, shape: ModelShape, text_tokens: int, steps: Sequence[Measured], rates: dict[str, float]
) -> HardwareSettings:
    """What the measured rates leave of the steps, as costs of the other parts: non-negative least squares of relative
    errors."""
    flops, memory = rates["matmul_flops_per_second"], rates["memory_bytes_per_second"]
    sizes = [_size(step.case, text_tokens) for step in steps]
    updates = [learner_work(config, shape, size, ranks=1) for size in sizes]
    rollouts = [rollout_work(config, shape, size, actors=1) for size in sizes]
    learner = _non_negative(
        [
            (w.attention_flops, w.activation_bytes, w.layer_starts, z.prompts * z.image_size**2 / 1e6)
            for w, z in zip(updates, sizes, strict=True)
        ],
        [
            s.busy.update - w.matmul_flops / flops - w.memory_bytes / memory
            for s, w in zip(steps, updates, strict=True)
        ],
        [step.busy.update for step in steps],
    )
    engine = _non_negative(
        [
            (
                w.attention_flops,
                w.layer_starts,
                z.prompts,
                z.prompts * z.group_size,
                z.prompts * z.group_size * z.completion_tokens,
            )
            for w, z in zip(rollouts, sizes, strict=True)
        ],
        [
            s.busy.rollout - w.matmul_flops / flops - w.memory_bytes / memory
            for s, w in zip(steps, rollouts, strict=True)
        ],
        [step.busy.rollout for step in steps],
    )
    # A digest by the learner and one by the engine; copies into the bucket, the object store, the file and the engine,
    # which copies once more into its kernel's own layout.
    sync_rate = 1 / (2 / rates["digested_bytes_per_second"] + 6 / rates["copied_bytes_per_second"])
    sync = statistics.median(step.busy.weight_sync for step in steps) - 4 * shape.parameters / sync_rate
    common = {"matmul_flops_per_second": flops, "memory_bytes_per_second": memory}
    return HardwareSettings.model_validate(
        {
            "learner": common
            | {
                "attention_flops_per_second": _rate(learner[0]),
                "activation_bytes_per_second": _rate(learner[1]),
                "layer_seconds": learner[2],
            },
            "rollout": common | {"attention_flops_per_second": _rate(engine[0]), "layer_seconds": engine[1]},
            "image_seconds_per_megapixel": learner[3],
            "prompt_seconds": engine[2],
            "completion_seconds": engine[3],
            "token_seconds": engine[4],
            "sync_seconds": max(0.0, sync),
            "sync_bytes_per_second": sync_rate,
        }
    )


def compare(
    config: Config, shape: ModelShape, text_tokens: int, step: Measured, fitted: bool
) -> dict[str, Any]:
    """One case: measured, predicted, and the prediction's relative error by part."""
    time_ = step_time(config, shape, _size(step.case, text_tokens), ranks=1, actors=1)
    predicted = StepSeconds(time_.rollout_seconds, time_.update_seconds, time_.weight_sync_seconds)
    parts = {
        name: (getattr(predicted, name), getattr(step.busy, name)) for name in (*asdict(predicted), "total")
    }
    return {
        "case": asdict(step.case),
        "name": step.case.name,
        "fitted": fitted,
        "busy_seconds": asdict(step.busy) | {"total": step.busy.total},
        "wall_seconds": asdict(step.wall) | {"total": step.wall.total},
        "predicted_seconds": asdict(predicted) | {"total": predicted.total},
        "error": {name: ours / theirs - 1 for name, (ours, theirs) in parts.items()},
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"{'case':55} {'measured':>9} {'wall':>8} {'predicted':>9} {'error':>7}   rollout  update    sync")
    for row in report["cases"]:
        numbers = [
            row[key]["total"] for key in ("busy_seconds", "wall_seconds", "predicted_seconds", "error")
        ]
        errors = "  ".join(f"{row['error'][part]:+6.0%}" for part in ("rollout", "update", "weight_sync"))
        errors += "  fitted" if row["fitted"] else "  predicted"
        print(
            f"{row['name']:55} {numbers[0]:9.2f} {numbers[1]:8.2f} {numbers[2]:9.2f} {numbers[3]:+7.0%}   {errors}"
        )
    print(
        f"load {report['load_before'][0]:.1f} before, {report['load_after'][0]:.1f} after, on {report['cores']} cores; "
        f"worst error of a predicted step {report['worst_error_of_predicted_steps']:.0%}"
    )


def _size(case: Case, text_tokens: int) -> StepSize:
    return StepSize(case.prompts, case.group_size, case.completion_tokens, case.image_size, text_tokens)


def _non_negative(
    features: Sequence[tuple[float, ...]], left: Sequence[float], whole: Sequence[float]
) -> list[float]:
    """Coefficients >= 0 of `left`, errors weighed relative to `whole`: Lawson and Hanson's active sets, chapter 23 of
    Solving Least Squares Problems (1974)."""
    weights = 1 / np.array(whole)
    matrix, target = np.array(features, float) * weights[:, None], np.array(left) * weights
    scale = np.abs(matrix).max(axis=0)
    matrix = matrix / scale
    solution, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], bool)
    while True:
        gradient = np.where(free, -np.inf, matrix.T @ (target - matrix @ solution))
        if gradient.max() <= 1e-9:
            return list((solution / scale).tolist())
        free[gradient.argmax()] = True
        while True:
            trial = np.zeros_like(solution)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            negative = free & (trial <= 0)
            if not negative.any():
                break
            step = (solution[negative] / (solution[negative] - trial[negative])).min()
            solution = solution + step * (trial - solution)
            free &= solution > 1e-12
        solution = trial


def _rate(seconds_each: float) -> float | None:
    return 1 / seconds_each if seconds_each > 0 else None


def _medians(steps: Sequence[StepSeconds]) -> StepSeconds:
    return StepSeconds(
        *(statistics.median(values) for values in zip(*(asdict(s).values() for s in steps), strict=True))
    )


def _seconds(call: Callable[[], object]) -> float:
    """Median CPU seconds of this thread for one call, of nine."""
    spent = []
    for _ in range(10):
        start = time.thread_time()
        call()
        spent.append(time.thread_time() - start)
    return statistics.median(spent[1:])


if __name__ == "__main__":
    sys.exit(main())
