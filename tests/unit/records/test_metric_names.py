"""Names of metrics are valid where they go, and dashboard and alerts ask for metrics that exist."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from medr1_ray.records.metric_names import METRICS, prometheus_name
from tests.repository import REPOSITORY

MONITORING = REPOSITORY / "clusters" / "monitoring"
OURS = {prometheus_name(name) for name in METRICS}
RAYS_OWN = {"ray_actors"}


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
