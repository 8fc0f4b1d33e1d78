"""The spans of a run as a Chrome trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medr1_ray.records.timeline import chrome_trace, write_timeline
from medr1_ray.types import Span


def test_a_timeline_has_a_process_for_each_actor_and_no_crossing_events() -> None:
    spans = [
        (1, Span("rollout-10", "rollout", 100.0, 103.0)),
        (1, Span("rollout-10", "rollout", 101.0, 104.0)),
        (2, Span("rollout-10", "rollout", 103.5, 105.0)),
        (1, Span("rollout-2", "rollout", 100.5, 101.0)),
        (2, Span("driver", "update", 104.0, 105.5)),
    ]
    trace = chrome_trace(spans)
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names == ["driver", "rollout-2", "rollout-10"]
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(e["name"], e["pid"], e["tid"], e["ts"], e["dur"], e["args"]["step"]) for e in events] == [
        ("rollout", 2, 0, 0, 3_000_000, 1),
        ("rollout", 1, 0, 500_000, 500_000, 1),
        ("rollout", 2, 1, 1_000_000, 3_000_000, 1),  # beside the first
        ("rollout", 2, 0, 3_500_000, 1_500_000, 2),  # after the first
        ("update", 0, 0, 4_000_000, 1_500_000, 2),
    ]
    assert trace["otherData"]["start_seconds"] == 100.0


def test_a_timeline_has_the_spans_of_the_steps_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no spans\.jsonl"):
        write_timeline(tmp_path)
    span = '{"step": %d, "actor": "driver", "phase": "update", "start_seconds": %d, "end_seconds": %d}\n'
    lines = "".join(span % (step, step, step + 1) for step in (1, 2, 3))
    (tmp_path / "spans.jsonl").write_text(lines + '{"step": 4, "act')  # a run that is still writing

    def steps(path: Path) -> list[int]:
        events = json.loads(path.read_text())["traceEvents"]
        return [event["args"]["step"] for event in events if event["ph"] == "X"]

    assert steps(write_timeline(tmp_path)) == [1, 2, 3]
    assert steps(write_timeline(tmp_path, first=2, last=2)) == [2]
    with pytest.raises(ValueError, match=r"--first 9: .* it has steps 1 to 3"):
        write_timeline(tmp_path, first=9)


def test_no_spans_are_an_empty_trace() -> None:
    assert chrome_trace([])["traceEvents"] == []
