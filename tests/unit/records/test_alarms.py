"""Alarms are raised and ended once, over a window of steps, and never by a step in which nothing was measured."""

from __future__ import annotations

import math

import pytest

from medr1_ray.config import AlarmSettings
from medr1_ray.records.alarms import Alarms
from medr1_ray.records.metric_names import METRICS

WELL = {
    "policy/logprob_gap_mean": 1e-6,
    "policy/entropy": 0.1,
    "reward/format_mean": 1.0,
    "reward/zero_variance_fraction": 0.5,
    "completion/truncated_fraction": 0.0,
}


def test_the_rules_are_about_metrics_that_there_are() -> None:
    assert METRICS.keys() >= WELL.keys()
    assert "alarms/active" in METRICS


@pytest.mark.parametrize(
    ("metric", "value", "says"),
    [
        ("policy/logprob_gap_mean", 6e-4, r"0.0006 over the last 3 steps (alarms.gap_fraction: 0.0005): engines and"),
        ("policy/entropy", 1e-4, r"0.0001 over the last 3 steps (alarms.entropy_below: 0.001): the policy hardly"),
        ("reward/format_mean", 0.25, r"0.25 over the last 3 steps (alarms.format_below: 0.5): many completions"),
        ("reward/zero_variance_fraction", 1.0, r"1 over the last 3 steps (alarms.zero_variance_above: 0.95): most"),
        ("completion/truncated_fraction", 0.5, r"0.5 over the last 3 steps (alarms.truncated_above: 0.3): many"),
    ],
)
def test_each_alarm_is_told_when_it_begins_and_when_it_ends(metric: str, value: float, says: str) -> None:
    alarms = Alarms(AlarmSettings(window=3), gap_mean_limit=1e-3)
    wrong = {**WELL, metric: value}
    for _ in range(2):
        assert alarms.watch(wrong) == [], "one step, or two, may be chance"
    (line,) = alarms.watch(wrong)
    assert line.startswith(f"ALARM: {metric} is {says}")
    assert alarms.watch(wrong) == []
    assert alarms.active == 1
    told = [line for _ in range(3) for line in alarms.watch(WELL)]
    assert len(told) == 1
    assert told[0].startswith(f"alarm over: {metric} is ")
    assert alarms.active == 0


@pytest.mark.parametrize("metric", ["policy/logprob_gap_mean", "policy/entropy"])
def test_what_is_no_number_is_beyond_every_limit(metric: str) -> None:
    alarms = Alarms(AlarmSettings(window=2), gap_mean_limit=1e-3)
    (line,) = [line for _ in range(2) for line in alarms.watch({**WELL, metric: math.nan})]
    assert line.startswith(f"ALARM: {metric} is nan")


def test_a_run_that_goes_well_raises_none() -> None:
    alarms = Alarms(AlarmSettings(), gap_mean_limit=1e-3)
    assert [line for _ in range(50) for line in alarms.watch(WELL)] == []


def test_a_limit_of_null_is_no_alarm_and_what_was_not_measured_counts_for_nothing() -> None:
    off = AlarmSettings(window=2, entropy_below=None, gap_fraction=None)
    alarms = Alarms(off, gap_mean_limit=1e-3)
    wrong = {"policy/entropy": 0.0, "policy/logprob_gap_mean": 1.0}
    assert [line for _ in range(9) for line in alarms.watch(wrong)] == []
    alarms = Alarms(AlarmSettings(window=2), gap_mean_limit=1e-3)
    assert [line for _ in range(9) for line in alarms.watch({"policy/logprob_gap_mean": None})] == []
