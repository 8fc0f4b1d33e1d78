"""A run directory of an earlier version: its checkpoint loads; its optimizer, a pickle, is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from medr1_ray.model.checkpoint_files import checkpoint_tensors, resolve_checkpoint
from tests.faults.processes import PATIENCE
from tests.repository import REPOSITORY

OLD = REPOSITORY / "tests" / "data" / "run_of_e6eb291.tar.xz"


def test_a_run_of_commit_e6eb291_is_started_from_and_not_resumed(tmp_path: Path) -> None:
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "run"
    before = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    old = resolve_checkpoint(str(run))
    assert old.name == "checkpoint-4"
    loaded = AutoModelForImageTextToText.from_pretrained(old).state_dict()
    assert len(dict(checkpoint_tensors(old))) > 10
    assert all(torch.isfinite(tensor).all() for tensor in loaded.values())

    resumed = subprocess.run(
        [sys.executable, "-m", "medr1_ray.train", "--config", "run/config.yaml", "--resume", "train.steps=6"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert resumed.returncode == 1
    (error,) = (line for line in resumed.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith("error: none of the checkpoints in ")
    assert "manifest.json is missing in checkpoint-4" in error
    assert "an earlier version" in error
    assert f"model.path={old}" in error
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == before
