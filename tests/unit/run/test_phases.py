"""What the driver did when: spans, and seconds by phase."""

from __future__ import annotations

from contextlib import suppress

import pytest

from medr1_ray.run import phases as module
from medr1_ray.run.phases import Phases
from medr1_ray.types import Span


def test_phases_are_spans_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    seconds = {"update": 5.0}
    phases = Phases(seconds, [Span("driver", "startup", 90.0, 100.0)])
    with phases.timed("rollout"):
        now += 2
        with phases.timed("checkpoint"):
            now += 1
    with phases.timed("update"):
        now += 4
    with suppress(RuntimeError), phases.timed("update"):
        now += 8
        raise RuntimeError
    assert seconds == {"update": 9.0, "rollout": 3.0, "checkpoint": 1.0}
    assert [(span.phase, span.start_seconds, span.end_seconds) for span in phases.drain()] == [
        ("startup", 90.0, 100.0),
        ("checkpoint", 102.0, 103.0),
        ("rollout", 100.0, 103.0),
        ("update", 103.0, 107.0),
    ]
    assert phases.drain() == []
