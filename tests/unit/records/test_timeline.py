"""What operators see: idle fractions, the timeline, and that dashboard and alerts ask for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from medr1_ray.records.busy_time import BusyTime
from medr1_ray.records.metric_names import METRICS, prometheus_name
from medr1_ray.records.timeline import chrome_trace, main
from medr1_ray.types import Span
from tests.repository import REPOSITORY

MONITORING = REPOSITORY / "clusters" / "monitoring"
OURS = {prometheus_name(name) for name in METRICS}
RAYS_OWN = {"ray_actors"}


def test_overlapping_requests_count_once() -> None:
    """Three requests from 0 to 4 s and one from 6 to 7 s: 5 s; the learner's two phases: 3 s."""
    busy = BusyTime().add(
        [
            Span("rollout-0", "rollout", 6.0, 7.0),
            Span("rollout-0", "rollout", 0.0, 3.0),
            Span("rollout-0", "rollout", 1.0, 2.0),
            Span("rollout-0", "rollout", 2.0, 4.0),
            Span("learner-0", "pack", 0.0, 1.0),
            Span("learner-0", "forward_backward", 1.0, 3.0),
            Span("driver", "rollout", 0.0, 7.0),
        ]
    )
    assert busy == {"rollout-0": 5.0, "learner-0": 3.0}


def test_a_request_over_two_steps_counts_once() -> None:
    time = BusyTime()
    assert time.add([Span("rollout-0", "rollout", 0.0, 3.0)]) == {"rollout-0": 3.0}
    assert time.add([Span("rollout-0", "rollout", 1.0, 5.0)]) == {"rollout-0": 2.0}
    assert time.add([Span("rollout-0", "rollout", 2.0, 4.0)]) == {}


def test_evaluations_are_no_time_of_a_step() -> None:
    spans = [
        Span("driver", "evaluation", 2.0, 6.0),
        Span("rollout-0", "rollout", 1.0, 3.0),
        Span("rollout-0", "rollout", 3.0, 5.5),
        Span("rollout-0", "rollout", 5.0, 7.0),
    ]
    assert BusyTime().add(spans) == {"rollout-0": 2.0}


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


def test_the_timeline_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "holds no spans.jsonl" in capsys.readouterr().err
    span = '{"step": %d, "actor": "driver", "phase": "update", "start_seconds": %d, "end_seconds": %d}\n'
    lines = "".join(span % (step, step, step + 1) for step in (1, 2, 3))
    (tmp_path / "spans.jsonl").write_text(lines + '{"step": 4, "act')
    assert main([str(tmp_path), "--first", "2", "--last", "3"]) == 0
    trace = json.loads((tmp_path / "timeline.json").read_text())
    assert [event["args"]["step"] for event in trace["traceEvents"] if event["ph"] == "X"] == [2, 3]
    assert main([str(tmp_path), "--first", "9"]) == 1
    assert "no spans of steps 9" in capsys.readouterr().err


def asked_for(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "grafana_dashboard.json").read_text())
    return loaded


def test_the_dashboard_asks_for_metrics_that_are_exported() -> None:
    panels = dashboard()["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    expressions += [
        variable["query"]["query"]
        for variable in dashboard()["templating"]["list"]
        if "run" in variable["name"]
    ]
    shown = set().union(*map(asked_for, expressions))
    assert shown <= OURS | RAYS_OWN
    promised = {
        "perf/rollout_tokens_per_second",
        "ledger/groups_in_flight",
        "staleness/mean",
        "perf/learner_idle_fraction",
        "perf/rollout_idle_fraction",
        "perf/reward_idle_fraction",
        "time/weight_sync_seconds",
        "reward/total_mean",
        "reward/accuracy_mean",
        "perf/cost_per_1000_groups",
    }
    assert {prometheus_name(name) for name in promised} <= shown
    assert all(
        expression.count(bracket[0]) == expression.count(bracket[1])
        for expression in expressions
        for bracket in ("()", "{}", "[]")
    )
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_alerts_ask_for_metrics_that_are_exported() -> None:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) > 0
    for rule in group["rules"]:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert asked_for(rule["expr"])
        assert asked_for(rule["expr"]) <= OURS
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "0m"))


def test_names_are_valid_for_prometheus_and_stay_apart() -> None:
    assert len(OURS) == len(METRICS)
    assert all(re.fullmatch(r"ray_medr1_[a-z0-9_]+", name) for name in OURS)
