"""A run's spans as a Chrome trace, which opens in https://ui.perfetto.dev or chrome://tracing.

An actor is a process of the trace; phases of one actor that overlap (requests that generate together) lie in lanes,
since a lane's events must not cross. A run writes the whole of it as `timeline.json` when it ends. Format: "Trace Event
Format", JSON object form, complete ("X") and metadata ("M").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from medr1_ray.base.atomic_files import write_text
from medr1_ray.base.json_files import read_rows
from medr1_ray.types import Span

SPAN_KEYS = ("step", *(field.name for field in fields(Span)))
"""Of a line of spans.jsonl."""


def chrome_trace(spans: Iterable[tuple[int, Span]]) -> dict[str, Any]:
    """The trace of (step, span) pairs; times are microseconds since the first span began."""
    # Of spans that start at the same time, the longest comes first and gets the first lane.
    ordered = sorted(spans, key=lambda pair: (pair[1].start_seconds, -pair[1].end_seconds))
    zero = ordered[0][1].start_seconds if ordered else 0.0
    processes = {
        actor: i for i, actor in enumerate(sorted({span.actor for _, span in ordered}, key=_driver_first))
    }
    lanes: dict[str, list[float]] = {actor: [] for actor in processes}
    events: list[dict[str, Any]] = []
    for actor, process in processes.items():
        events.append({"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": actor}})
        events.append(
            {
                "name": "process_sort_index",
                "ph": "M",
                "pid": process,
                "tid": 0,
                "args": {"sort_index": process},
            }
        )
    for step, span in ordered:
        start, end = (round(1e6 * (at - zero)) for at in (span.start_seconds, span.end_seconds))
        ends = lanes[span.actor]
        lane = next((i for i, free_from in enumerate(ends) if free_from <= start), len(ends))
        # Replaces the end of a lane in use, or appends a new lane.
        ends[lane : lane + 1] = [end]
        events.append(
            {
                "name": span.phase,
                "cat": span.actor.rstrip("0123456789-"),
                "ph": "X",
                "ts": start,
                "dur": end - start,
                "pid": processes[span.actor],
                "tid": lane,
                "args": {"step": step},
            }
        )
    return {"displayTimeUnit": "ms", "otherData": {"start_seconds": zero}, "traceEvents": events}


def write_timeline(directory: Path, first: int | None = None, last: int | None = None) -> Path:
    """Write a run's trace as `timeline.json`, or that of some of its steps as another file; returns its path.

    Raises:
        ValueError: there are no spans in these steps, or the directory is not that of a run.
    """
    source = directory / "spans.jsonl"
    if not source.exists():
        raise ValueError(
            f"{directory} holds no spans.jsonl: give the directory of a run that has completed a step"
        )
    every = list(_read(source))
    steps = [step for step, _ in every] or [0]
    begin, end = min(steps) if first is None else first, max(steps) if last is None else last
    spans = [(step, span) for step, span in every if begin <= step <= end]
    if not spans:
        given = (f"--{name} {step}" for name, step in (("first", first), ("last", last)) if step is not None)
        raise ValueError(
            f"{' '.join(given)}: {source} has no spans of these steps; it has steps {min(steps)} to {max(steps)}"
        )
    whole = first is None and last is None
    path = directory / ("timeline.json" if whole else f"timeline-{begin}-{end}.json")
    write_text(path, json.dumps(chrome_trace(spans)))
    return path


def _read(path: Path) -> Iterator[tuple[int, Span]]:
    for row in read_rows(path, SPAN_KEYS):
        step, *values = (row[key] for key in SPAN_KEYS)
        yield step, Span(*values)


def _driver_first(actor: str) -> tuple[bool, str, int]:
    """Driver, then learner-0, learner-1, ..., reward-0, ..., rollout-0, ..., rollout-10."""
    name, _, number = actor.rpartition("-")
    return (actor != "driver", name, int(number)) if number.isdigit() else (actor != "driver", actor, 0)
