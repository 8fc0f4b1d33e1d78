"""A simulated driver with engines: limits that follow by hand."""

from __future__ import annotations

import pytest

from benchmarks.helpers.scale.simulation import simulate


def test_a_driver_that_takes_no_time_keeps_all_engines_busy() -> None:
    # 10 engines, 2 seconds a group.
    assert simulate(10, 2.0, 0.0, in_flight=40) == pytest.approx(5.0, rel=0.02)


def test_a_slow_driver_is_the_limit() -> None:
    # 10 ms a group: 100 groups a second, although the engines could answer 1,000.
    assert simulate(1000, 1.0, 0.01, in_flight=4000) == pytest.approx(100, rel=0.02)


def test_too_few_groups_in_flight_leave_engines_idle() -> None:
    # A single group in flight takes 1 s in the engine and 0.1 s in the driver.
    assert simulate(8, 1.0, 0.1, in_flight=1) == pytest.approx(1 / 1.1, rel=0.02)
