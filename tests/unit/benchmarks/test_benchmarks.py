"""The benchmarks' own logic, where it needs no engine: the GPU step on a CPU, the simulation, the turns."""

import json
import runpy
import subprocess
import sys

import pytest

from tests.repository import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / f"{name}.py"))


def test_the_gpu_benchmark_runs_on_a_cpu():
    command = [sys.executable, str(BENCHMARKS / "device.py"), "--device", "cpu", "--model", "tiny", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"name", "ours", "theirs", "unit", "ratio", "of_limit", "settings", "load"} <= result.keys()
    assert result["ratio"] == pytest.approx(result["theirs"] / result["ours"])
    assert set(result["load"]) == {"before", "after"}


def test_sides_run_in_turns_and_swap_their_order(monkeypatch):
    interleaved, order = load("common", monkeypatch)["interleaved"], []

    def side(name):
        return lambda: order.append(name) or float(len(order))

    found = interleaved({"a": side("a"), "b": side("b")}, rounds=2, warm_up=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


@pytest.fixture(scope="module")
def simulate():
    with pytest.MonkeyPatch.context() as patch:
        yield load("scale", patch)["simulate"]


class TestSimulation:
    def test_a_driver_that_takes_no_time_keeps_all_engines_busy(self, simulate):
        # 10 engines, 2 seconds a group.
        assert simulate(10, 2.0, 0.0, in_flight=40) == pytest.approx(5.0, rel=0.02)

    def test_a_slow_driver_is_the_limit(self, simulate):
        # 10 ms a group: 100 groups a second, of the 1,000 that the engines could answer.
        assert simulate(1000, 1.0, 0.01, in_flight=4000) == pytest.approx(100, rel=0.02)

    def test_too_few_groups_in_flight_leave_engines_idle(self, simulate):
        # One group goes round: 1 s in the engine and 0.1 s in the driver.
        assert simulate(8, 1.0, 0.1, in_flight=1) == pytest.approx(1 / 1.1, rel=0.02)
