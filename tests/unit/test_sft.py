"""The supervised loop over a session whose actors are stand-ins that keep a record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medr1_ray import sft
from medr1_ray.base.manifest import StoredFile, store
from medr1_ray.config import Config, tiny_model_path
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.demonstrations import Teacher
from medr1_ray.data.encoding import PromptEncoder
from medr1_ray.data.stream import PromptStream
from medr1_ray.evaluation.blinding import EvaluationPrompts
from medr1_ray.evaluation.in_training import EvaluationLog
from medr1_ray.learner.messages import Gap, ImitationReport, OptimizerStep
from medr1_ray.pool.actor_states import ActorCounts, ActorStates
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.scaling import Scaling
from medr1_ray.records.alarms import Alarms
from medr1_ray.records.checkpoints import Checkpoints, RunState, read_state
from medr1_ray.records.summary import Totals
from medr1_ray.records.terminal import Progress
from medr1_ray.records.tracker import Tracker
from medr1_ray.rewards.functions import resolve, score
from medr1_ray.run.phases import Phases
from medr1_ray.run.saving import CheckpointWriter, Saving
from medr1_ray.run.session import Session
from medr1_ray.run.skipped_steps import SkippedSteps
from medr1_ray.types import CompletedPrompt, Group, Prompt, Sampling, Span


class Actors:
    """Learner, pool, weight channel and parity gate at once: knows the learner's version and the one shown."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ledger = Ledger(lambda: 0.0)
        self.imitated: list[str] = []
        self.shown, self.evaluated, self.checked = -1, list[int](), list[int]()

    def imitate(
        self, demonstrations: Sequence[CompletedPrompt], version: int, meanwhile: Callable[[], None]
    ) -> ImitationReport:
        meanwhile()
        self.imitated += [prompt.id for prompt, _ in demonstrations]
        return ImitationReport(version + 1, OptimizerStep(1.0, 1.0, 1e-4), 40, 400, 1e9, None, ())

    def make_room(self) -> None:
        self.shown = -1  # as where the learner updates on the engines' GPUs

    def sync(self, version: int) -> None:
        self.shown = version

    def poll(self) -> None:
        pass

    def actor_counts(self) -> ActorCounts:
        return ActorStates(lambda: 0.0, target=1).counts()

    def check(self, version: int) -> Gap:
        self.checked.append(version)
        return Gap(1e-6, 1e-5, 4)

    def run(self, prompts: Iterable[Prompt], sampling: Sampling) -> list[Group]:
        self.evaluated.append(self.shown)
        teacher = Teacher.from_checkpoint(str(tiny_model_path()), self.config.mode, sampling.max_tokens)
        functions = resolve(self.config.reward.functions, self.config.mode)
        return [
            Group(
                prompt,
                completions,
                score(prompt.id, completions.texts, prompt.question, self.config.mode, functions, "reward-0"),
                np.zeros(len(completions.texts), np.float32),
            )
            for prompt, completions in teacher.demonstrate(prompts, 9)
        ]

    def drain_spans(self) -> list[Span]:
        return []

    def unused_prompt_ids(self) -> list[str]:
        return []

    def begin_save(self, folder: Path, meanwhile: Callable[[], None]) -> None:
        self.saving = folder
        (folder / "version").write_text(str(len(self.imitated)))

    def is_saving(self) -> bool:
        return False

    def finish_save(self, meanwhile: Callable[[], None], *, briefly: bool) -> list[StoredFile]:
        return [store(self.saving, "version")]


def config_of(run: Path, **train: Any) -> Config:
    return Config.model_validate(
        {
            "objective": "sft",
            "run": {"dir": run, "evaluate_every": 2, "save_every": 2},
            "data": {
                "format": "phantoms",
                "root": run.parent / "phantoms",
                "phantom_images": 40,
                "eval_questions": 16,
                "image_size": 84,
            },
            "train": {"prompts_per_step": 4, **train},
        }
    )


def run_sft(config: Config, monkeypatch: pytest.MonkeyPatch, state: RunState | None = None) -> Actors:
    run, actors = config.run.dir, Actors(config)
    dataset = open_dataset(config.data)
    encoder = PromptEncoder.from_checkpoint(str(tiny_model_path()), config.mode, 84, "squash", 512)
    stream = PromptStream(dataset.train, encoder, config.train.seed, state.stream if state else None)
    stand_in: Any = actors
    totals = state.totals if state else Totals()
    phases = Phases(totals.seconds)
    checkpoints = Checkpoints(run / "checkpoints", keep=5)

    @contextmanager
    def open_session(config: Config, *, resume: bool, engines: None) -> Iterator[Session]:
        run.mkdir(exist_ok=True)
        yield Session(
            config=config,
            step=state.step if state else 0,
            learner=stand_in,
            pool=stand_in,
            weights=stand_in,
            encoder=encoder,
            stream=stream,
            gate=stand_in,
            evaluation_prompts=EvaluationPrompts(dataset.evaluation, encoder, print),
            evaluations=EvaluationLog(run / "evaluations", print, state.step if state else 0),
            tracker=Tracker(config, run, *((state.step, state.metric_lines) if state else (0, 0))),
            progress=Progress(config.train.steps),
            saving=Saving(config.run, CheckpointWriter(config, stand_in, checkpoints, phases), actors.poll, print),
            totals=totals,
            phases=phases,
            scaling=Scaling.of(config),
            skipped_steps=SkippedSteps(config.learner, state.steps_skipped if state else 0),
            alarms=Alarms(config.alarms, config.gap_mean_limit),
            replay=None,
        )

    monkeypatch.setattr(sft, "open_session", open_session)
    sft.sft(config, resume=state is not None)
    return actors


def test_every_evaluation_sees_the_weights_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "run", steps=5)
    actors = run_sft(config, monkeypatch)
    # Before, after steps 2 and 4, and at the end with the image, with a blank one and with another's.
    assert actors.evaluated == [0, 2, 4, 5, 5, 5]
    assert actors.checked == [0, 2, 4, 5], "engines and learner are compared at each of these versions"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["objective"], summary["completions"], summary["groups_issued"]) == ("sft", 20, 0)
    assert summary["eval"]["after"]["accuracy"] == 1.0, "the stand-in answers rightly"
    assert "step 5/5  loss 1.000" in capsys.readouterr().out


def test_a_resumed_run_goes_on_with_the_next_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_sft(config_of(tmp_path / "whole", steps=4), monkeypatch)
    first = run_sft(config_of(tmp_path / "cut", steps=2), monkeypatch)
    state = read_state(tmp_path / "cut" / "checkpoints" / "checkpoint-2")
    second = run_sft(config_of(tmp_path / "cut", steps=4), monkeypatch, state)
    assert first.imitated + second.imitated == whole.imitated
    assert second.evaluated[0] == 4, "what was evaluated before the cut is not again"
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["step"] for line in lines if "loss/total" in line]
    assert losses == [1, 2, 3, 4]
    # The one of step 2 was the last of a run that was to end there, told after its checkpoint.
    assert [json.loads(line)["step"] for line in lines if "eval/accuracy" in line] == [0, 2, 4]


def test_each_command_says_whose_settings_these_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medr1_ray import train

    path = tmp_path / "config.yaml"
    path.write_text(f"run: {{dir: {tmp_path / 'run'}}}\ndata: {{format: phantoms, root: x}}\ntrain: {{steps: 1}}\n")
    assert train.main(["--config", str(path), "objective=sft"]) == 1
    assert "objective=sft: these settings are for python -m medr1_ray.sft" in capsys.readouterr().err
    assert sft.main(["--config", str(path), "--dry-run"]) == 0
    assert "objective: sft" in capsys.readouterr().out
