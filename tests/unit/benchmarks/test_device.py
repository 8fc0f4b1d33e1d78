"""The benchmark of a GPU's training step on a CPU, which checks its logic."""

from __future__ import annotations

import json
import os
import runpy
import sys

import pytest
import torch


def test_it_measures_a_training_step_and_prints_a_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "active"))  # which it sets for its process
    monkeypatch.setattr(sys, "argv", ["device.py", "--device", "cpu", "--model", "tiny", "--quick", "--json"])
    threads = torch.get_num_threads()  # of which it takes one
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.device", run_name="__main__")
    torch.set_num_threads(threads)
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"name", "ours", "theirs", "unit", "ratio", "of_limit", "settings", "load"} <= result.keys()
    assert result["ratio"] == pytest.approx(result["theirs"] / result["ours"])
    assert set(result["load"]) == {"before", "after"}
