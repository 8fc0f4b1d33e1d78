"""A run directory and its checkpoint written before the package was moved into rooms are still resumed and loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from medr1_ray.model.checkpoint_files import checkpoint_tensors, resolve_checkpoint
from tests.repository import REPOSITORY

OLD = REPOSITORY / "tests" / "data" / "run_of_e6eb291.tar.xz"


def test_a_run_of_commit_e6eb291_goes_on(tmp_path: Path) -> None:
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
        timeout=400,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr

    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert after[: len(before)] == before, "what the old run had measured stays"
    steps = [line["step"] for line in after if "reward/total_mean" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    rates = {line["step"]: line["optim/learning_rate"] for line in after if "optim/learning_rate" in line}
    # Step 5 has index 4; of 6 steps the first is warm-up: 1 - (4 - 1) / (6 - 1) of 1e-3.
    assert abs(rates[5] - 4e-4) < 1e-9
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["groups_used"], summary["completions"]) == (6, 24, 96)
    questions = [
        json.loads(line)["question_id"]
        for path in sorted((run / "rollouts").glob("step-*.jsonl"))
        for line in path.read_text().splitlines()[::4]
    ]
    assert len(set(questions)) == len(questions) == 24, "the stream goes on: no question of the epoch twice"
    new = load_file(run / "checkpoints" / "checkpoint-6" / "model.safetensors")
    assert new.keys() == load_file(old / "model.safetensors").keys()
