"""What a run writes down, read back from the files."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medr1_ray.config import Config
from medr1_ray.evaluation.in_training import Evaluation
from medr1_ray.records.tracker import Tracker, read_accuracies
from medr1_ray.types import Span
from tests.faults.files import full
from tests.unit.records.recorded import a_config, a_group, lines_of


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return a_config(tmp_path)


def test_a_line_a_step_with_the_step_first(config: Config) -> None:
    tracker = Tracker(config, config.run.dir)
    tracker.log(1, {"reward/total_mean": 0.5, "policy/kl": None})
    tracker.log(2, {"reward/total_mean": np.float32(0.25), "ledger/groups_used": 3})
    tracker.log(2, {"eval/accuracy": 1.0})
    assert (config.run.dir / "metrics.jsonl").read_text() == (
        '{"step": 1, "reward/total_mean": 0.5, "policy/kl": null}\n'
        '{"step": 2, "reward/total_mean": 0.25, "ledger/groups_used": 3}\n'
        '{"step": 2, "eval/accuracy": 1.0}\n'
    )


def test_numbers_that_are_not_finite_stay_visible(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    numbers = {
        "loss/total": float("nan"),
        "optim/grad_norm": float("inf"),
        "policy/ratio_max": -np.float32("inf"),
    }
    with caplog.at_level(logging.WARNING):
        Tracker(config, config.run.dir).log(1, numbers)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((config.run.dir / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {
        "step": 1,
        "loss/total": "NaN",
        "optim/grad_norm": "Infinity",
        "policy/ratio_max": "-Infinity",
    }
    assert [float(line[name]) for name in ("optim/grad_norm", "policy/ratio_max")] == [np.inf, -np.inf]
    assert caplog.messages[0] == "step 1: loss/total is nan"


def test_undocumented_names_and_earlier_steps_are_refused(config: Config) -> None:
    tracker = Tracker(config, config.run.dir)
    with pytest.raises(
        ValueError, match=r"'reward/total_men' is not documented .*; did you mean 'reward/total_mean'"
    ):
        tracker.log(1, {"reward/total_men": 1.0})
    tracker.log(3, {"reward/total_mean": 1.0})
    with pytest.raises(ValueError, match="step 2 after those of step 3"):
        tracker.log(2, {"reward/total_mean": 1.0})
    assert [line["step"] for line in lines_of(config.run.dir / "metrics.jsonl")] == [3]


def test_a_resumed_run_keeps_its_steps_and_moves_later_ones_aside(config: Config) -> None:
    run = config.run.dir
    tracker = Tracker(config, config.run.dir)
    for step in (1, 2, 3, 4):
        tracker.log(step, {"reward/total_mean": step})
        tracker.write_rollouts(step, [a_group()])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "rew')  # the run was killed while it wrote
    (run / "rollouts" / "step-000010 (copy).jsonl").touch()

    resumed = Tracker(config, config.run.dir, 2, 2)
    resumed.log(3, {"reward/total_mean": 30})
    assert [line["reward/total_mean"] for line in lines_of(run / "metrics.jsonl")] == [1, 2, 30]
    assert [line["step"] for line in lines_of(run / "metrics.discarded-1.jsonl")] == [3, 4]
    assert sorted(path.name for path in (run / "rollouts").iterdir()) == [
        "discarded-1-step-000003.jsonl",
        "discarded-1-step-000004.jsonl",
        "step-000001.jsonl",
        "step-000002.jsonl",
        "step-000010 (copy).jsonl",
    ]

    Tracker(config, config.run.dir, 2, 2).log(3, {"reward/total_mean": 31})
    assert [line["reward/total_mean"] for line in lines_of(run / "metrics.jsonl")] == [1, 2, 31]
    assert [line["reward/total_mean"] for line in lines_of(run / "metrics.discarded-2.jsonl")] == [30]
    Tracker(config, config.run.dir, 3, 3)
    assert not (run / "metrics.discarded-3.jsonl").exists()


def test_a_line_that_was_removed_by_hand_brings_no_later_one_back(config: Config) -> None:
    tracker = Tracker(config, config.run.dir)
    for step in (1, 2, 3, 4):
        tracker.log(step, {"reward/total_mean": step})
    path = config.run.dir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))  # it was damaged
    Tracker(config, config.run.dir, 3, 3).log(4, {"reward/total_mean": 40})
    assert [line["reward/total_mean"] for line in lines_of(path)] == [2, 3, 40]


def test_what_safetensors_finds_no_room_for_does_not_end_the_run(config: Config, disk: Path) -> None:
    said: list[str] = []
    directory = disk / "run"
    directory.mkdir()
    tracker = Tracker(config, directory, say=said.append)
    with full(disk):
        tracker.record_groups(1, [a_group()])
        tracker.log_spans(1, [a_group().completions.span])
        tracker.close()
    assert any(line.startswith(f"NOT WRITTEN: {directory}/recorded: No space left") for line in said)
    assert said[-1].startswith("LOST: 1 lines of")


def test_evaluations_after_the_checkpoint_are_not_told_twice(config: Config) -> None:
    """Killed between the evaluations after the last step, a run does them again."""
    tracker = Tracker(config, config.run.dir)
    tracker.log(1, {"reward/total_mean": 1})
    tracker.log(1, {"eval/accuracy": 0.25})  # due at this step, before its checkpoint
    saved = tracker.lines
    tracker.log(1, {"eval/accuracy": 0.5})
    resumed = Tracker(config, config.run.dir, 1, saved)
    resumed.log(1, {"eval/accuracy": 0.5})
    lines = lines_of(config.run.dir / "metrics.jsonl")
    assert [line.get("eval/accuracy") for line in lines] == [None, 0.25, 0.5]
    assert len(lines_of(config.run.dir / "metrics.discarded-1.jsonl")) == 1


def test_rollouts_have_one_line_a_completion(config: Config) -> None:
    path = Tracker(config, config.run.dir).write_rollouts(10, [a_group()])
    assert path == config.run.dir / "rollouts" / "step-000010.jsonl"
    first, second = lines_of(path)
    assert first.pop("advantage") == 0.75
    assert second.pop("advantage") == -0.75
    common = {
        "prompt_id": "e0/q1",
        "question_id": "q1",
        "question": "What is it? A)CT, B)MRI",
        "gold": "B",
        "modality": "MRI",
        "question_type": "Modality Recognition",
        "image": "/images/1.png",
    }
    assert first == common | {
        "completion": "<answer>B</answer>",
        "answer": "B",
        "correct": True,
        "well_formed": True,
        "rewards": {"accuracy": 1.0, "format": 1.0},
        "reward": 2.0,
        "length_tokens": 3,
        "truncated": False,
        "version_min": 4,
        "version_max": 5,
    }
    assert second == common | {
        "completion": "größer",
        "answer": None,
        "correct": False,
        "well_formed": False,
        "rewards": {"accuracy": 0.0, "format": 0.0},
        "reward": 0.0,
        "length_tokens": 1,
        "truncated": True,
        "version_min": 5,
        "version_max": 5,
    }


def test_spans_and_summary(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(config, config.run.dir)
    tracker.log_spans(1, [Span("driver", "update", 1.5, 2.0)])
    tracker.log_spans(2, [Span("driver", "update", 3.0, 4.0)])
    assert lines_of(config.run.dir / "spans.jsonl") == [
        {"step": 1, "actor": "driver", "phase": "update", "start_seconds": 1.5, "end_seconds": 2.0},
        {"step": 2, "actor": "driver", "phase": "update", "start_seconds": 3.0, "end_seconds": 4.0},
    ]
    summary = {"steps": 2, "eval": {"before": {"accuracy": np.float64(0.5)}}, "logprob_gap_max": float("nan")}
    path = tracker.write_summary(summary)
    expected = {"steps": 2, "eval": {"before": {"accuracy": 0.5}}, "logprob_gap_max": "NaN"}
    assert json.loads(path.read_text()) == expected

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        tracker.write_summary({"steps": 3})
    assert json.loads(path.read_text()) == expected


def test_metrics_are_published_as_they_are_logged(config: Config) -> None:
    published: list[dict[str, float | None]] = []
    tracker = Tracker(config, config.run.dir, publish=lambda metrics: published.append(dict(metrics)))
    tracker.log(1, {"reward/total_mean": 0.5, "policy/kl": None})
    assert published == [{"reward/total_mean": 0.5, "policy/kl": None}]


def test_a_run_leaves_its_timeline(config: Config) -> None:
    tracker = Tracker(config, config.run.dir)
    tracker.close()
    assert not (config.run.dir / "timeline.json").exists()
    tracker.log_spans(1, [Span("driver", "update", 1.5, 2.0)])
    tracker.close()
    events = json.loads((config.run.dir / "timeline.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == ["update"]


def test_tensorboard(config: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config.model_copy(update={"run": config.run.model_copy(update={"tensorboard": True})})
    tracker = Tracker(config, config.run.dir)
    tracker.log(1, {"reward/total_mean": 0.5, "policy/kl": None})
    tracker.log(2, {"reward/total_mean": 0.75})
    tracker.close()
    events = EventAccumulator(str(config.run.dir / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward/total_mean"]
    assert [(e.step, e.value) for e in events.Scalars("reward/total_mean")] == [(1, 0.5), (2, 0.75)]


@pytest.mark.parametrize(
    ("settings", "package"),
    [({"wandb": "offline"}, "wandb"), ({"wandb": "online"}, "wandb"), ({"tensorboard": True}, "tensorboard")],
)
def test_a_missing_package_is_said(
    config: Config, settings: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if package in name:
            raise ModuleNotFoundError(f"No module named {package!r}")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    key, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=rf"run\.{key}={str(value).lower()} needs the package {package}"):
        Tracker(config.model_copy(update={"run": config.run.model_copy(update=settings)}), config.run.dir)


class Wandb:
    """Stands in for the package: records what it is told."""

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> Wandb:
        self.settings.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axis = (name, step_metric)

    def log(self, metrics: dict[str, Any]) -> None:
        self.logged.append(metrics)


def test_wandb_goes_on_under_its_id_after_a_resume(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = config.model_copy(update={"run": config.run.model_copy(update={"wandb": "offline"})})
    Tracker(config, config.run.dir).log(1, {"reward/total_mean": 0.5, "policy/kl": None})
    Tracker(config, config.run.dir, 1, 1).log(2, {"reward/total_mean": 0.75})
    assert wandb.logged == [{"step": 1, "reward/total_mean": 0.5}, {"step": 2, "reward/total_mean": 0.75}]
    assert wandb.axis == ("*", "step")
    first, second = wandb.settings
    assert first == second
    assert (first["mode"], first["name"], first["project"]) == ("offline", "run", "medr1_ray")


def test_wandb_gets_no_secrets(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = config.model_copy(
        update={
            "run": config.run.model_copy(update={"wandb": "offline"}),
            "rollout": config.rollout.model_copy(update={"engine": {"hf_token": "hf_one"}}),
        }
    )
    monkeypatch.setattr(sys, "argv", ["train", "train.steps=3"])
    Tracker(config, config.run.dir)
    monkeypatch.setattr(sys, "argv", ["train", "rollout.engine.hf_token=hf_one"])
    Tracker(config, config.run.dir)
    assert "hf_one" not in str(wandb.settings)
    assert [given["settings"]["x_disable_meta"] for given in wandb.settings] == [False, True]


def test_versions_of_a_completion_without_tokens_are_unknown(config: Config) -> None:
    group = a_group()
    completions = replace(group.completions, lengths=np.array([4, 0], np.int32))
    path = Tracker(config, config.run.dir).write_rollouts(1, [replace(group, completions=completions)])
    first, second = lines_of(path)
    assert (first["version_min"], first["version_max"]) == (4, 5)
    assert (second["version_min"], second["version_max"]) == (None, None)


def test_a_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_config(tmp_path)
    said: list[str] = []
    tracker = Tracker(config, config.run.dir, say=said.append)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("medr1_ray.records.tracker.write_text", full)
    tracker.write_rollouts(1, [a_group()])
    (line,) = said
    assert line.startswith("NOT WRITTEN: ")
    assert line.endswith("step-000001.jsonl: No space left on device; the run goes on without it")

    def refused(path: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("medr1_ray.records.tracker.write_text", refused)
    with pytest.raises(PermissionError):
        tracker.write_rollouts(2, [a_group()])


def test_what_evaluations_found_is_known_by_step_as_far_as_the_run_went(config: Config) -> None:
    tracker = Tracker(config, config.run.dir)
    for step, accuracy in ((0, 0.25), (2, 0.5), (4, 0.75)):
        tracker.log_evaluation(step, Evaluation(accuracy, 1.0, 8, {}, {}))
        tracker.log(step + 1, {"reward/total_mean": 1.0})
    assert tracker.accuracies == read_accuracies(config.run.dir) == {0: 0.25, 2: 0.5, 4: 0.75}
    assert Tracker(config, config.run.dir, 3, 4).accuracies == {0: 0.25, 2: 0.5}, "of a past that was left"
