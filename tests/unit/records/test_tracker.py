"""What a run writes down, read back from the files."""

import builtins
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medr1_ray.config import Config
from medr1_ray.learner.messages import ImitationReport, OptimizerStep, PolicyStatistics, UpdateReport
from medr1_ray.pool.actor_states import Membership
from medr1_ray.pool.group_ledger import LedgerCounts
from medr1_ray.records.busy_time import BusyTime
from medr1_ray.records.metric_names import METRICS
from medr1_ray.records.metrics import Resources, imitation_metrics, step_metrics
from medr1_ray.records.terminal import Progress
from medr1_ray.records.tracker import Tracker
from medr1_ray.types import Completions, Group, Prompt, Question, Rewards, Span


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": tmp_path / "run"},
            "data": {"format": "phantoms", "root": tmp_path / "data"},
            "train": {"steps": 10},
        }
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_group() -> Group:
    """Two completions of 3 and 1 tokens; the first is right."""
    question = Question(
        "q1", "/images/1.png", "What is it?", ("CT", "MRI"), 1, "MRI", "Modality Recognition", "d"
    )
    prompt = Prompt("e0/q1", question, np.array([1], np.int32), np.zeros((2, 2, 3), np.uint8))
    completions = Completions(
        prompt_id="e0/q1",
        actor="rollout-0",
        token_ids=np.arange(4, dtype=np.int32),
        rollout_logprobs=np.zeros(4, np.float32),
        versions=np.array([4, 4, 5, 5], np.int32),
        lengths=np.array([3, 1], np.int32),
        truncated=np.array([False, True]),
        texts=("<answer>B</answer>", "größer"),
        visual_tokens=1,
        span=Span("rollout-0", "generate", 1.0, 2.0),
    )
    rewards = Rewards(
        prompt_id="e0/q1",
        names=("accuracy", "format"),
        values=np.array([[1, 1], [0, 0]], np.float32),
        total=np.array([2, 0], np.float32),
        correct=np.array([True, False]),
        well_formed=np.array([True, False]),
        answers=("B", None),
        span=Span("reward-0", "reward", 2.0, 2.5),
    )
    return Group(prompt, completions, rewards)


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

    resumed = Tracker(config, config.run.dir, 2)
    resumed.log(3, {"reward/total_mean": 30})
    assert [line["reward/total_mean"] for line in lines_of(run / "metrics.jsonl")] == [1, 2, 30]
    discarded = (run / "metrics.discarded-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in discarded[:2]] == [3, 4]
    assert discarded[2:] == ['{"step": 1, "rew']
    assert sorted(path.name for path in (run / "rollouts").iterdir()) == [
        "discarded-1-step-000003.jsonl",
        "discarded-1-step-000004.jsonl",
        "step-000001.jsonl",
        "step-000002.jsonl",
    ]

    Tracker(config, config.run.dir, 2).log(3, {"reward/total_mean": 31})
    assert [line["reward/total_mean"] for line in lines_of(run / "metrics.jsonl")] == [1, 2, 31]
    assert [line["reward/total_mean"] for line in lines_of(run / "metrics.discarded-2.jsonl")] == [30]
    Tracker(config, config.run.dir, 3)
    assert not (run / "metrics.discarded-3.jsonl").exists()


def test_rollouts_have_one_line_a_completion(config: Config) -> None:
    """Totals 2 and 0: mean 1, unbiased std sqrt(2); the advantage is 1 / (sqrt(2) + 1e-4) and its opposite."""
    path = Tracker(config, config.run.dir).write_rollouts(10, [a_group()])
    assert path == config.run.dir / "rollouts" / "step-000010.jsonl"
    first, second = lines_of(path)
    assert first.pop("advantage") == pytest.approx(0.70706, abs=1e-5)
    assert second.pop("advantage") == pytest.approx(-0.70706, abs=1e-5)
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


def test_advantages_follow_the_loss_settings(config: Config) -> None:
    config = config.model_copy(update={"loss": config.loss.model_copy(update={"advantage_std": False})})
    path = Tracker(config, config.run.dir).write_rollouts(1, [a_group()])
    assert [line["advantage"] for line in lines_of(path)] == [1.0, -1.0]


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


def test_what_is_emitted_is_what_is_documented() -> None:
    statistics = PolicyStatistics(**{field.name: 1.0 for field in fields(PolicyStatistics)})
    spans = (
        Span("driver", "rollout", 0.0, 2.0),
        Span("driver", "update", 2.0, 3.0),
        Span("driver", "weight_sync", 3.0, 4.0),
        Span("reward-0", "reward", 1.0, 1.5),
        Span("rollout-0", "rollout", 0.0, 2.0),
        Span("rollout-1", "rollout", 0.0, 1.0),
    )
    # Two ranks: references overlap and cover 0.3 s, forward and backward passes cover 0.5 s.
    phases = (
        Span("learner-0", "reference", 2.0, 2.2),
        Span("learner-1", "reference", 2.1, 2.3),
        Span("learner-0", "forward_backward", 2.3, 2.8),
        Span("learner-1", "forward_backward", 2.4, 2.6),
    )
    step = OptimizerStep(0.1, 1.0, 1e-4)
    report = UpdateReport(6, (step,), statistics, 1, 0, 0, 4, 60, 3e12, 1e13, phases)
    counts = LedgerCounts(issued=3, used=1, zero_variance=0, in_flight=1, dropped={"stale": 1}, reissued=1, late=1)
    members = Membership(lambda: 0.0, target=2).counts()
    resources = Resources(learner_ranks=2, rollout_actors=2, reward_actors=1, price_per_hour=9.0)
    busy = BusyTime().add([*spans, *phases])
    metrics = step_metrics([a_group()], report, counts, members, {"too long": 2}, spans, busy, resources)
    # Of 2 x 4 s the ranks work 0.7 and 0.4, and the rollout actors 3; of 4 s the reward actor 0.5. 4 s at 9 an hour
    # for one group is 0.01.
    assert metrics["perf/learner_idle_fraction"] == pytest.approx(1 - 1.1 / 8)
    assert metrics["perf/rollout_idle_fraction"] == 0.625
    assert metrics["perf/reward_idle_fraction"] == 0.875
    assert metrics["perf/cost_per_1000_groups"] == pytest.approx(10.0)
    evaluated = {name for name in METRICS if name.startswith("eval/")}
    assert metrics.keys() == METRICS.keys() - evaluated
    assert len(METRICS) <= 60
    assert metrics["perf/reference_tokens_per_second"] == pytest.approx(60 / 0.3)
    assert metrics["perf/gradient_tokens_per_second"] == pytest.approx(60 / 0.5)
    assert metrics["perf/model_flops_utilisation"] == pytest.approx(0.3)  # 3e12 in one second, of 1e13
    unknown = replace(report, peak_flops=None, spans=())
    nobody = Resources(learner_ranks=2, rollout_actors=0, reward_actors=1, price_per_hour=9.0)
    metrics = step_metrics([a_group()], report, counts, members, {}, spans, busy, nobody)
    assert metrics["perf/rollout_idle_fraction"] is None, "all actors were lost in this step"
    metrics = step_metrics([a_group()], unknown, counts, members, {}, spans, busy, resources)
    assert metrics["perf/model_flops_utilisation"] is None
    assert metrics["perf/reference_tokens_per_second"] is None


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


def test_a_supervised_step_emits_what_is_documented() -> None:
    spans = (
        Span("driver", "data", 0.0, 0.5),
        Span("driver", "update", 0.5, 2.0),
        Span("driver", "weight_sync", 2.0, 3.0),
        Span("driver", "evaluation", 3.0, 9.0),
    )
    group = a_group()
    pairs = [(group.prompt, group.completions)] * 3
    report = ImitationReport(6, OptimizerStep(0.25, 1.0, 1e-4), 12, 60, 3e12, 1e13, spans)
    metrics = imitation_metrics(pairs, report, {"too long": 2}, spans)
    assert metrics.keys() <= METRICS.keys()
    assert (metrics["loss/total"], metrics["ledger/prompts_dropped"]) == (0.25, 2)
    assert (metrics["time/step_seconds"], metrics["perf/completions_per_second"]) == (3.0, 1.0)
    assert metrics["perf/learner_tokens_per_second"] == 40.0  # 60 in 1.5 s
    assert metrics["perf/model_flops_utilisation"] == pytest.approx(0.2)  # 3e12 in 1.5 s, of 1e13


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

    def init(self, **settings: Any) -> "Wandb":
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
    Tracker(config, config.run.dir, 1).log(2, {"reward/total_mean": 0.75})
    assert wandb.logged == [{"step": 1, "reward/total_mean": 0.5}, {"step": 2, "reward/total_mean": 0.75}]
    assert wandb.axis == ("*", "step")
    first, second = wandb.settings
    assert first == second
    assert (first["mode"], first["name"], first["project"]) == ("offline", "run", "medr1_ray")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SUMMARY = {
    "steps": 100,
    "eval": {
        "before": {"accuracy": 0.41, "format": 0.95, "n": 400},
        "after": {"accuracy": 0.93, "format": 0.99, "n": 400},
        "blank_image": 0.28,
        "shuffled_image": 0.27,
    },
    "completions_per_second": 61.25,
    "seconds": {
        "total": 480,
        "rollout": 200,
        "update": 150,
        "weight_sync": 20,
        "evaluation": 60,
        "startup": 50,
    },
    "logprob_gap_mean": 2e-6,
    "logprob_gap_max": 3e-4,
}


def test_progress_without_a_terminal_prints_a_line_now_and_then() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(100, stream, every_seconds=10, clock=lambda: now[0])
    progress.message("6000 questions")
    metrics = {
        "reward/total_mean": 1.234,
        "reward/accuracy_mean": 0.5,
        "perf/rollout_tokens_per_second": 1234.5,
    }
    for step in range(1, 5):
        now[0] = 6.0 * step
        progress.update(step, metrics)
    now[0] = 25.0
    progress.update(100, metrics)
    progress.close(SUMMARY)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "6000 questions",
        "step 1/100  reward 1.23  accuracy 0.50  1234 tokens/s  ETA ?",
        "step 3/100  reward 1.23  accuracy 0.50  1234 tokens/s  ETA 9:42",  # 97 steps of 6 s
        "step 100/100  reward 1.23  accuracy 0.50  1234 tokens/s  ETA 0:00",
        "accuracy 0.410 before, 0.930 after 100 steps (400 held-out questions; format 0.950, 0.990)",
        "without looking: blank image 0.280, another question's image 0.270",
        "61.2 completions/s; 480 s (rollout 200, update 150, weight sync 20, evaluation 60); "
        "log-probability gap of engine and learner 2.0e-06 nats, at most 3.0e-04",
    ]


def test_progress_in_a_terminal_keeps_one_line() -> None:
    now = [0.0]
    stream = Terminal()
    progress = Progress(1000, stream, clock=lambda: now[0])
    progress.update(1, {"reward/total_mean": 1.0})
    now[0] = 10.0
    progress.update(3, {"reward/total_mean": 2.0, "perf/rollout_tokens_per_second": None})
    progress.message("evaluation")
    progress.close()
    shown = stream.getvalue()
    last_state = shown.rstrip("\n").split("\r")[-1]
    assert last_state.startswith("step 3/1000 |")
    assert last_state.rstrip().endswith("reward 2.00  ETA 1:23:05")  # 997 steps of 5 s
    assert "evaluation\n" in shown


def test_progress_counts_the_steps_of_the_last_window_only() -> None:
    """A slow first step (an engine that warms up) is forgotten after 20 steps."""
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(121, stream, every_seconds=0, clock=lambda: now[0])
    for step in range(1, 22):
        now[0] = 1000.0 + step if step > 1 else 0.0
        progress.update(step, {})
    assert stream.getvalue().splitlines()[-1] == "step 21/121  ETA 1:40"


def test_versions_of_a_completion_without_tokens_are_unknown(config: Config) -> None:
    group = a_group()
    completions = replace(group.completions, lengths=np.array([4, 0], np.int32))
    path = Tracker(config, config.run.dir).write_rollouts(1, [replace(group, completions=completions)])
    first, second = lines_of(path)
    assert (first["version_min"], first["version_max"]) == (4, 5)
    assert (second["version_min"], second["version_max"]) == (None, None)
