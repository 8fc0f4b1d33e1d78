"""Fit the `hardware` settings on the tiny model, predict larger steps with them, and compare with measured steps.

    python -m benchmarks.sizing_calibration [--repetitions 5] [--json result.json] [--hardware cpu.yaml]

`helpers/calibration/hardware_fit.py` fits the settings to steps of the tiny model's shape. With them,
`medr1_ray.sizing.time` predicts steps of `bench30m` (hidden 512, 8 layers, vision depth 4) and of the tiny model with
other group sizes; none of these were used in the fit. Cases are interleaved, figures are medians. CPU seconds are
compared (see `Bench.step` in `helpers/calibration/step_measurement.py`), because other work on the machine disturbs
them less than wall-clock seconds; these and the load are reported as well. Exits with 1 if a predicted step is more
than 20 % off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import yaml

from benchmarks.helpers.calibration.hardware_fit import Measured, fit, machine_rates, step_size
from benchmarks.helpers.calibration.step_measurement import Bench, Case, StepSeconds, write_model
from medr1_ray.base.command_line import ArgumentParser, run_to_status
from medr1_ray.config import Config
from medr1_ray.model.shape import ModelShape, read_shape
from medr1_ray.sizing.time import step_time

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


def main() -> int:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5, help="timed steps of each case (default: 5)")
    parser.add_argument("--json", type=Path, help="write all measurements and predictions to this file")
    parser.add_argument("--hardware", type=Path, help="write the fitted settings to this YAML file, for --config")
    options = parser.parse_args()
    return run_to_status(lambda ending: calibrate(options))


def calibrate(options: argparse.Namespace) -> int:
    """Measure, fit, predict and print; return 1 if a predicted step is too far off."""
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: write_model(name, Path(scratch) / name) for name in ("tiny", "bench30m")}
        shapes = {name: read_shape(folder) for name, folder in models.items()}
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
        benches = {
            name: Bench(name, folder, Path(scratch) / f"{name}-logs", THREADS)
            for name, folder in models.items()
        }
        rates = machine_rates(THREADS)
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


def measure(benches: dict[str, Bench], cases: Sequence[Case], repetitions: int) -> dict[Case, Measured]:
    """Measure all cases in turn, `repetitions` times after one round to warm up."""
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


def compare(
    config: Config, shape: ModelShape, text_tokens: int, step: Measured, fitted: bool
) -> dict[str, Any]:
    """Return one case's measured and predicted seconds, and the prediction's relative error by part."""
    time_ = step_time(config, shape, step_size(step.case, text_tokens), ranks=1, actors=1)
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


def _medians(steps: Sequence[StepSeconds]) -> StepSeconds:
    return StepSeconds(
        *(statistics.median(values) for values in zip(*(asdict(s).values() for s in steps), strict=True))
    )


if __name__ == "__main__":
    sys.exit(main())
