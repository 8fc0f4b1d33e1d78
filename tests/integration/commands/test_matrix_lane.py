"""A lane of the matrix experiment: trainings of both kinds one after the other on the same real engine."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from benchmarks.helpers.matrix.lane import train_row
from benchmarks.helpers.matrix.settings import MatrixSettings, Trained, run_directory
from tests.repository import REPOSITORY


def test_trainings_share_an_engine_and_a_failed_one_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    small = ["rollout.actors=1", "train.steps=2", "train.prompts_per_step=4", "train.group_size=4", "loss.kl_beta=0.1"]
    small.append("learner.warmup_steps=1")
    data = [f"data.root={tmp_path / 'phantoms'}", "data.phantom_images=160", "data.eval_questions=12"]
    settings = MatrixSettings.model_validate(
        {
            "out": tmp_path,
            "configs": [REPOSITORY / "configs" / "matrix" / "phantoms_run.yaml"],
            "methods": {"grpo": {"command": "train"}, "sft": {"command": "sft"}},
            "axes": {"no_think": {"question_type": [*small, *data]}},
        }
    )
    first = Trained("question_type", "no_think", "grpo", "Anatomy Identification")
    second = Trained("question_type", "no_think", "sft", "Disease Diagnosis")
    third = Trained("question_type", "no_think", "grpo", "Lesion Grading")
    run_directory(settings, third).parent.mkdir(parents=True)
    run_directory(settings, third).write_text("in the way")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as lane:
        assert all(lane.submit(train_row, settings, row).result() > 0 for row in (first, second))
        with pytest.raises(RuntimeError, match=r"lesion_grading failed .*\n(.*\n)*.*run\.dir=.* cannot be made"):
            lane.submit(train_row, settings, third).result()
    grpo, sft = (
        json.loads((run_directory(settings, row) / "summary.json").read_text()) for row in (first, second)
    )
    assert (grpo["objective"], grpo["steps"], grpo["groups_used"]) == ("grpo", 2, 8)
    assert (sft["objective"], sft["steps"], sft["completions"]) == ("sft", 2, 8)
    # The second run began at version 0 of the start model, whatever the engine had learned in the first.
    assert 0 < sft["logprob_gap_max"] < 1e-3
    (engine,) = (tmp_path / "engines").iterdir()
    assert (engine / "logs" / "rollout-0.log").exists()
    assert not list(run_directory(settings, second).glob("logs/rollout-*"))
