"""The benchmark of the driver's scaling with one fake engine: real Ray, pool, encoder and reward actor."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.repository import REPOSITORY


def test_the_bottleneck_is_calculated_from_what_the_same_run_measured() -> None:
    command = ["-m", "benchmarks.scale", "--sizes", "1", "--latency-seconds", "0.005", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    settings = json.loads(done.stdout.splitlines()[-1])["settings"]
    assert 0 < settings["driver_seconds"] < 0.1
    for mode, found in settings["calculated"].items():
        measured = found["measured"]
        assert measured["engine_seconds"] > 0.005
        for cost in ("driver_seconds", "reward_seconds"):
            assert 0 < measured[cost] < 0.1
        assert 0 < measured["calls"] < 10
        assert f"\n{mode}, " in done.stdout
        for line in found["bottleneck"]:
            assert f"\n- {line}\n" in done.stdout
        for size in found["clusters"]:
            assert size["rates"]["driver"] == pytest.approx(1 / measured["driver_seconds"])
            assert size["rates"]["rewards"] == pytest.approx(1 / measured["reward_seconds"])
            # Between a tenth of a millisecond and a tenth of a second for a question and its image.
            assert 10 < size["rates"]["encoders"] < 10_000
