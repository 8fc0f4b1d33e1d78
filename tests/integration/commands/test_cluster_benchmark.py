"""The benchmark of a new cluster with the tiny shape on this machine's CPU: real engines, real learner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.repository import REPOSITORY

SPEED = ["step", "rollout", "update", "weight_sync", "parity"]


def test_the_tiny_shape_is_measured_in_each_mode_of_an_engine(tmp_path: Path) -> None:
    """What becomes of a failed mode, and how engines scale, is seen in the unit tests, without starting any."""
    out = tmp_path / "out"
    command = ["-m", "benchmarks.cluster", "--config", "configs/phantom_cpu.yaml", "--gpus", "0", "--steps", "2"]
    settings = [f"run.dir={out}", "rollout.actors=1", "train.prompts_per_step=8", "learner.peak_flops=1e12"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, *command, *settings],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "cluster.json").read_text())
    modes = {mode["mode"]: mode for mode in report["modes"]}
    assert list(modes) == [f"1 rank, 1 engine, object_store, {kind}" for kind in ("sync", "async")]
    for mode in modes.values():
        check(mode, done.stdout)
    assert report["bottleneck"] in done.stdout.splitlines()
    assert report["bottleneck"].startswith("Fastest is 1 rank, ")
    # Both had the same engine.
    assert [len(list(each.glob("logs/rollout-*.log"))) for each in (out / "engines").iterdir()] == [1]


def check(mode: dict[str, Any], text: str) -> None:
    """The figures hang together, and the tables show those of the JSON."""
    assert mode["failed"] is None
    seconds, rates, each = mode["seconds"], mode["tokens_per_second"], mode["tokens_per_second_per_gpu"]
    # Medians of two steps, so that they add up as the steps do.
    assert seconds["step"] == pytest.approx(sum(seconds[phase] for phase in SPEED[1:]), rel=1e-6)
    assert seconds["update"] > 0
    assert 0 < rates["step"] < rates["generation"]
    assert each["step"] == pytest.approx(rates["step"] / (mode["ranks"] + mode["engines"]))
    assert each["generation"] == pytest.approx(rates["generation"] / mode["engines"])
    assert each["update"] == pytest.approx(rates["update"] / mode["ranks"])
    assert 0 < mode["mfu"] < 1
    assert all(0 <= idle <= 1 for idle in mode["idle"].values())
    memory = mode["memory_gib"]
    for actor in ("rank", "engine"):
        # The estimate is for the largest batches, and shall not be too low.
        assert 0.75 < memory[actor] / memory[f"{actor}_estimated"] < 1.05, (actor, memory)
    assert 0 < mode["logprob_gap_mean"] < 1e-3
    planned, speed, phases = (
        [number(cell) for cell in line.removeprefix(mode["mode"]).split()]
        for line in text.splitlines()
        if line.startswith(f"{mode['mode']} ")
    )
    idle = [mode["idle"]["learner"], mode["idle"]["engines"]]
    shown = [*(seconds[phase] for phase in SPEED), rates["step"], each["step"], mode["mfu"], *idle]
    assert_shown(speed, shown)
    first = [rates["generation"], each["generation"], mode["scaling"], rates["update"], each["update"]]
    assert_shown(phases, [*first, *memory_in_order(memory)])
    assert_shown(planned, [memory["rank_estimated"], memory["engine_estimated"], None])


def memory_in_order(memory: dict[str, float]) -> list[float]:
    return [memory[key] for key in ("rank", "rank_estimated", "engine", "engine_estimated")]


def number(cell: str) -> float | None:
    return None if cell == "-" else float(cell.replace(",", ""))


def assert_shown(cells: list[float | None], values: list[float | None]) -> None:
    for cell, value in zip(cells, values, strict=True):
        # Rates are shown without decimals, all else with at least two.
        assert (cell is None) == (value is None)
        assert cell is None or cell == pytest.approx(value, abs=0.51 if cell > 10 else 0.0051)
