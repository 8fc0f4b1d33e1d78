"""What the comparison of groups reads from a run's metrics."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.teaching import Point, points, reached


def test_seconds_and_completions_are_those_before_an_evaluation(tmp_path: Path) -> None:
    def step(number: int, issued: int) -> dict[str, float]:
        phases = {"rollout": 1.0, "update": 2.0, "weight_sync": 0.5, "parity": 0.25, "evaluation": 60.0}
        times = {f"time/{phase}_seconds": seconds for phase, seconds in phases.items()}
        return {"step": number, "time/step_seconds": 70.0, "ledger/groups_issued": issued, **times}

    rows = [
        {"step": 0, "eval/accuracy": 0.5, "eval/format": 1.0},
        step(1, 64),
        step(2, 100),
        {"step": 2, "eval/accuracy": 0.9, "eval/format": 1.0},
        step(3, 132),
        {"step": 3, "eval/accuracy": 0.8, "eval/format": 1.0},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = points(metrics, group_size=8)
    assert found == [Point(0, 0.5, 0.0, 0), Point(2, 0.9, 7.5, 800), Point(3, 0.8, 11.25, 1056)]
    assert reached(found, 0.9) == found[1], "the first, not the last"
    assert reached(found, 0.95) is None
