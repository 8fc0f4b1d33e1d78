"""What the benchmark of scale prints, without the measurement."""

from __future__ import annotations

import json

import pytest

from benchmarks.helpers.scale.limits import MODES, clusters
from benchmarks.helpers.scale.measuring import Measured
from benchmarks.scale import HARDWARE, calculate, measured_table


def measured(driver_seconds: float) -> Measured:
    return Measured(
        engines=16,
        engine_seconds=0.02,
        groups_per_second=400.0,
        driver_seconds=driver_seconds,
        reward_seconds=0.0005,
        calls=0.33,
        sent_bytes=5593,
    )


def test_the_bottleneck_is_named_at_the_costs_measured_for_each_mode(capsys: pytest.CaptureFixture[str]) -> None:
    planned = {mode.name: clusters(mode, HARDWARE) for mode in MODES}
    of_mode = {"2B No-Think": measured(5e-3), "2B Think": measured(1e-6)}
    found = calculate(planned, of_mode, 1e-6, HARDWARE)
    of_no_think, of_think = capsys.readouterr().out.split("\n2B Think, ")
    assert "1,000 GPUs: the bottleneck is the driver: no setting helps" in of_no_think
    assert "at the 5.00 ms a group measured" in of_no_think
    assert "bottleneck is the driver" not in of_think
    for mode, rate in (("2B No-Think", 200.0), ("2B Think", 1e6)):
        assert found[mode]["clusters"][-1]["rates"]["driver"] == pytest.approx(rate)
    assert json.loads(json.dumps(found)) == found


def test_the_measured_costs_are_a_table() -> None:
    *_, row = measured_table([measured(0.0012)]).splitlines()
    # 16 engines of 20 ms answer 800 groups a second.
    assert row.split() == ["16", "20", "400.0", "0.50", "1.20", "0.50", "0.33", "5,593"]
