"""What was measured, beside what was expected: one row for each mode, as JSON and as tables made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.helpers.cluster.modes import Mode
from medr1_ray.config import Config
from medr1_ray.model.shape import ModelShape
from medr1_ray.sizing.memory import Part, learner_parts, rollout_parts
from medr1_ray.sizing.time import step_size, step_time

GIB = 2**30
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Estimate:
    """What the dry run says of a mode: bytes that a rank and an engine need on their GPU, or in main memory where they
    have none, and seconds of a step, None where `hardware` has no rates. `per_rank` and `per_engine` are the devices of
    each; a process without a GPU counts as one."""

    rank_bytes: int
    engine_bytes: int
    step_seconds: float | None
    per_rank: float = 1.0
    per_engine: float = 1.0


@dataclass(frozen=True)
class Row:
    """A mode and the medians of its steps' metrics, under the names of `metric_names.METRICS`, or why it failed.

    `peaks` are bytes of a `rank` and an `engine`, None where unknown.
    """

    mode: Mode
    estimate: Estimate | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    peaks: Mapping[str, int | None] = field(default_factory=dict)
    failed: str | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of the completions learned from, over the whole step; 0 where the mode failed."""
        return self.metrics.get("perf/rollout_tokens_per_second", 0.0)


def estimate(config: Config, shape: ModelShape) -> Estimate:
    learner, rollout = config.learner, config.rollout
    timed = config.hardware.learner.matmul_flops_per_second is not None
    time = step_time(config, shape, step_size(config), learner.world_size, rollout.actors) if timed else None
    return Estimate(
        _bytes(learner_parts(config, shape), learner.gpus_per_rank),
        _bytes(rollout_parts(config, shape), rollout.gpus_per_actor),
        time.seconds if time else None,
        learner.gpus_per_rank or 1.0,
        rollout.gpus_per_actor or 1.0,
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error, which names what failed, with its kind where it is not one of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "without a message"
    named = text if isinstance(error, ValueError | RuntimeError) and lines else f"{type(error).__name__}: {text}"
    return named if len(named) <= _LONGEST_REASON else f"{named[:_LONGEST_REASON]}..."


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one mapping for each mode; what was not measured is None."""
    return [_as_json(row, rows) for row in rows]


def _as_json(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    mode, expected, get = row.mode, row.estimate, row.metrics.get
    ranks = mode.ranks * (expected.per_rank if expected else 1.0)
    engines = mode.engines * (expected.per_engine if expected else 1.0)
    generation, update = get("perf/generation_tokens_per_second"), get("perf/learner_tokens_per_second")
    step = get("perf/rollout_tokens_per_second")
    return {
        "mode": mode.name,
        "settings": list(mode.settings),
        "failed": row.failed,
        "ranks": mode.ranks,
        "engines": mode.engines,
        "seconds": {
            "startup": get("startup_seconds"),
            "step": get("time/step_seconds"),
            "rollout": get("time/rollout_seconds"),
            "update": get("time/update_seconds"),
            "weight_sync": get("time/weight_sync_seconds"),
            "parity": get("time/parity_seconds"),
            "step_estimated": expected.step_seconds if expected else None,
        },
        "tokens_per_second": {"step": step, "generation": generation, "update": update},
        "tokens_per_second_per_gpu": {
            "step": _over(step, ranks + engines),
            "generation": _over(generation, engines),
            "update": _over(update, ranks),
        },
        "mfu": get("perf/model_flops_utilisation"),
        "idle": {
            "learner": get("perf/learner_idle_fraction"),
            "engines": get("perf/rollout_idle_fraction"),
            "rewards": get("perf/reward_idle_fraction"),
        },
        "scaling": scaling(row, rows),
        "memory_gib": {
            "rank": _gib(row.peaks.get("rank")),
            "rank_estimated": _gib(expected.rank_bytes if expected else None),
            "engine": _gib(row.peaks.get("engine")),
            "engine_estimated": _gib(expected.engine_bytes if expected else None),
        },
        "logprob_gap_mean": get("logprob_gap_mean"),
    }


def scaling(row: Row, rows: Sequence[Row]) -> float | None:
    """Return the generation of an engine as a fraction of an engine's in the like mode with the fewest engines; None
    where there is none with fewer."""
    key = "perf/generation_tokens_per_second"

    def like(other: Row) -> bool:
        of_other = other.mode.colocated, other.mode.transport, other.mode.max_staleness
        return of_other == (row.mode.colocated, row.mode.transport, row.mode.max_staleness) and key in other.metrics

    fewest = min(filter(like, rows), key=lambda other: other.mode.engines, default=None)
    if fewest is None or key not in row.metrics or fewest.mode.engines >= row.mode.engines:
        return None
    return row.metrics[key] / row.mode.engines / (fewest.metrics[key] / fewest.mode.engines)


_SPEED: tuple[tuple[str, str, str], ...] = (
    ("step s", "seconds.step", ".2f"),
    ("rollout", "seconds.rollout", ".2f"),
    ("update", "seconds.update", ".2f"),
    ("sync", "seconds.weight_sync", ".2f"),
    ("parity", "seconds.parity", ".2f"),
    ("tokens/s", "tokens_per_second.step", ",.0f"),
    ("per GPU", "tokens_per_second_per_gpu.step", ",.0f"),
    ("MFU", "mfu", ".3f"),
    ("learner idle", "idle.learner", ".2f"),
    ("engines idle", "idle.engines", ".2f"),
)
_PHASES: tuple[tuple[str, str, str], ...] = (
    ("generation/s", "tokens_per_second.generation", ",.0f"),
    ("per GPU", "tokens_per_second_per_gpu.generation", ",.0f"),
    ("scaling", "scaling", ".2f"),
    ("update/s", "tokens_per_second.update", ",.0f"),
    ("per GPU", "tokens_per_second_per_gpu.update", ",.0f"),
    ("rank GiB", "memory_gib.rank", ".2f"),
    ("estimate", "memory_gib.rank_estimated", ".2f"),
    ("engine GiB", "memory_gib.engine", ".2f"),
    ("estimate", "memory_gib.engine_estimated", ".2f"),
)
_PLANNED: tuple[tuple[str, str, str], ...] = (
    ("rank GiB", "memory_gib.rank_estimated", ".2f"),
    ("engine GiB", "memory_gib.engine_estimated", ".2f"),
    ("step s", "seconds.step_estimated", ".2f"),
)


def measured_tables(modes: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of `as_json`'s modes, and a line for each that failed."""
    done = [mode for mode in modes if mode["failed"] is None]
    failed = [f"failed: {mode['mode']}: {mode['failed']}" for mode in modes if mode["failed"] is not None]
    tables = [_table(done, _SPEED), "", _table(done, _PHASES)] if done else []
    return "\n".join([*tables, *(["", *failed] if failed else [])])


def planned_table(modes: Sequence[Mapping[str, Any]]) -> str:
    """Return the modes with the dry run's estimates, and a line for each that is not possible."""
    not_possible = [f"not possible: {mode['mode']}: {mode['failed']}" for mode in modes if mode["failed"] is not None]
    return "\n".join([_table([mode for mode in modes if mode["failed"] is None], _PLANNED), *not_possible])


def _table(modes: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]) -> str:
    rows = [("mode", *(title for title, _, _ in columns))]
    rows += [(str(mode["mode"]), *(_cell(mode, path, form) for _, path, form in columns)) for mode in modes]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    # The name is flush left, numbers are flush right.
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, aligned, strict=True))


def _cell(mode: Mapping[str, Any], path: str, form: str) -> str:
    value: Any = mode
    for key in path.split("."):
        value = value[key]
    return "-" if value is None else format(value, form)


def _over(tokens: float | None, devices: float) -> float | None:
    return None if tokens is None else tokens / devices


def _gib(size: int | None) -> float | None:
    return None if size is None else size / GIB


def _bytes(parts: Sequence[Part], gpus: float) -> int:
    return sum(part.bytes for part in parts if part.place == "device" or not gpus)
