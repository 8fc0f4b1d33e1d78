"""Rows of a cluster's benchmark as JSON and as tables."""

from __future__ import annotations

import pytest

from benchmarks.helpers.cluster.modes import Mode
from benchmarks.helpers.cluster.report import (
    GIB,
    Estimate,
    Row,
    as_json,
    estimate,
    first_line,
    measured_tables,
    planned_table,
)
from benchmarks.helpers.cluster.settings import FULL_SIZE
from medr1_ray.config import tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.model.shape import read_shape
from medr1_ray.sizing.report import dry_run
from tests.repository import REPOSITORY

EXPECTED = Estimate(40 * GIB, 8 * GIB, 2.5, per_rank=1.0, per_engine=2.0)
METRICS = {
    "time/step_seconds": 4.0,
    "time/rollout_seconds": 1.0,
    "perf/rollout_tokens_per_second": 1000.0,
    "perf/generation_tokens_per_second": 3000.0,
    "perf/learner_tokens_per_second": 8000.0,
    "perf/learner_idle_fraction": 0.25,
}


def measured(ranks: int, engines: int, generation: float, transport: str = "nccl", staleness: int = 1) -> Row:
    metrics = METRICS | {"perf/generation_tokens_per_second": generation}
    mode = Mode(ranks, engines, transport, staleness, ("a=1",))
    return Row(mode, EXPECTED, metrics, {"rank": 20 * GIB, "engine": None})


def test_rates_are_divided_by_the_gpus_of_their_phase() -> None:
    (found,) = as_json([measured(2, 3, 3000.0)])
    assert found["tokens_per_second"] == {"step": 1000.0, "generation": 3000.0, "update": 8000.0}
    # Two ranks of one GPU, three engines of two.
    assert found["tokens_per_second_per_gpu"] == {"step": 125.0, "generation": 500.0, "update": 4000.0}
    assert found["memory_gib"] == {"rank": 20.0, "rank_estimated": 40.0, "engine": None, "engine_estimated": 8.0}
    assert found["seconds"]["step_estimated"] == 2.5
    assert found["mfu"] is None


def test_scaling_is_taken_to_the_like_mode_with_the_fewest_engines() -> None:
    rows = [
        measured(4, 4, 3200.0),
        measured(7, 1, 1000.0),
        measured(6, 2, 1800.0),
        measured(4, 4, 100.0, "object_store"),
        measured(4, 4, 100.0, staleness=0),
        Row(Mode(8, 1, "object_store", 1, ()), EXPECTED, failed="no place"),
    ]
    found = [each["scaling"] for each in as_json(rows)]
    assert found == [pytest.approx(0.8), None, pytest.approx(0.9), None, None, None]


def test_a_failed_mode_is_a_line_and_the_others_are_rows() -> None:
    rows = [measured(2, 3, 3000.0), Row(Mode(1, 1, "ipc", 0, (), True), None, failed="out of memory")]
    text = measured_tables(as_json(rows))
    speed, phases = (line.split() for line in text.splitlines() if line.startswith("2 ranks, 3 engines, nccl, async"))
    assert speed[6:] == ["4.00", "1.00", "-", "-", "-", "1,000", "125", "-", "0.25", "-"]
    assert phases[6:] == ["3,000", "500", "-", "8,000", "4,000", "20.00", "40.00", "-", "8.00"]
    assert text.endswith("\n\nfailed: 1 rank, 1 engine on the same GPUs, ipc, sync: out of memory")
    assert measured_tables(as_json(rows[1:])).strip().startswith("failed: ")


def test_the_plan_has_estimates_and_what_is_not_possible() -> None:
    rows = [Row(Mode(1, 1, "nccl", 0, ()), EXPECTED), Row(Mode(9, 1, "nccl", 0, ()), failed="too few prompts")]
    header, planned, impossible = planned_table(as_json(rows)).splitlines()
    assert header.split("  ")[0] == "mode"
    assert planned.split()[-3:] == ["40.00", "8.00", "2.50"]
    assert impossible == "not possible: 9 ranks, 1 engine, nccl, sync: too few prompts"


@pytest.mark.parametrize("on_gpus", [True, False])
def test_the_estimate_is_the_dry_runs(on_gpus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    if on_gpus:
        config = load_config([FULL_SIZE], ["run.dir=x"])
        shape = read_shape(REPOSITORY / "configs" / "models" / "qwen2_vl_2b")
    else:
        config, shape = load_config([REPOSITORY / "configs" / "phantom_cpu.yaml"]), read_shape(tiny_model_path())
    found = estimate(config, shape)
    totals = [line.split() for line in dry_run(config).splitlines() if line.startswith("  total ")]
    at = 1 if on_gpus else 2  # the column of memory on GPUs, or of main memory after a "0"
    sizes = []
    for line in totals:
        number, unit = (line[1], line[2]) if at == 1 else (line[2], line[3])
        sizes.append(float(number.replace(",", "")) * (GIB if unit == "GiB" else 2**20))
    assert [found.rank_bytes, found.engine_bytes] == pytest.approx(sizes, rel=0.01)
    assert found.step_seconds is None
    assert found.per_rank == found.per_engine == 1.0


def test_an_estimate_of_time_needs_rates() -> None:
    hardware = REPOSITORY / "configs" / "hardware" / "cpu_core.yaml"
    config = load_config([REPOSITORY / "configs" / "phantom_cpu.yaml", hardware])
    seconds = estimate(config, read_shape(tiny_model_path())).step_seconds
    assert seconds is not None
    assert seconds > 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("rollout.actors=2: no place\nmore"), "rollout.actors=2: no place"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError: without a message"),
        (ValueError("x" * 400), "x" * 300 + "..."),
    ],
)
def test_a_failure_is_one_line(error: Exception, said: str) -> None:
    assert first_line(error) == said
