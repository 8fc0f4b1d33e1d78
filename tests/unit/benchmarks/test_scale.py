"""What the benchmark of scale prints, without the measurement."""

from __future__ import annotations

import json

import pytest

from benchmarks.helpers.scale.limits import MODES, Costs, clusters
from benchmarks.helpers.scale.measuring import Measured
from benchmarks.scale import HARDWARE, calculate, measured_table


def test_the_bottleneck_is_named_for_both_modes_at_the_costs_measured(capsys: pytest.CaptureFixture[str]) -> None:
    planned = {mode.name: clusters(mode, HARDWARE) for mode in MODES}
    slow = calculate(planned, Costs(5e-3, 1e-6, 1e-6, 0.0), HARDWARE, 0.02)
    said = capsys.readouterr().out
    assert set(slow) == {"2B No-Think", "2B Think"}
    assert said.count("1,000 GPUs: the bottleneck is the driver: no setting helps") == 2
    assert said.count("at the 5.00 ms a group measured") == 2
    fast = calculate(planned, Costs(1e-6, 1e-6, 1e-6, 0.0), HARDWARE, 0.02)
    assert "bottleneck is the driver" not in capsys.readouterr().out
    for mode in slow:
        assert slow[mode]["clusters"][-1]["rates"]["driver"] == pytest.approx(200)
        assert fast[mode]["clusters"][-1]["rates"]["driver"] == pytest.approx(1e6)
    assert json.loads(json.dumps(slow)) == slow


def test_the_measured_costs_are_a_table() -> None:
    found = Measured(groups_per_second=400.0, driver_seconds=0.0012, reward_seconds=0.0005, calls=0.33, sent_bytes=5593)
    *_, row = measured_table({16: found}, 0.02).splitlines()
    # 16 engines of 20 ms answer 800 groups a second.
    assert row.split() == ["16", "400.0", "0.50", "1.20", "0.50", "0.33", "5,593"]
