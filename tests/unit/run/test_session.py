"""The loop's calls on a pool without Ray and a learner that only counts: what a session does between the two."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medr1_ray.base.manifest import NotSavedError, StoredFile, store
from medr1_ray.base.stopping import heeding_signals
from medr1_ray.config import AlarmSettings, HardwareSettings
from medr1_ray.config.loading import config_digest
from medr1_ray.data.stream import PromptStream
from medr1_ray.evaluation.blinding import EvaluationPrompts, NoLongerReadableError
from medr1_ray.evaluation.in_training import Evaluation, EvaluationLog
from medr1_ray.evaluation.settings import ASKED_WITH_FILE
from medr1_ray.learner.messages import Gap, ImitationReport, OptimizerStep, PolicyStatistics, UpdateReport
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import GroupStage, Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.scaling import Scaling
from medr1_ray.records.alarms import Alarms
from medr1_ray.records.checkpoints import Checkpoints, RunState, latest_checkpoint, read_state
from medr1_ray.records.metrics import Resources
from medr1_ray.records.recorded_groups import read_groups
from medr1_ray.records.summary import Totals
from medr1_ray.records.terminal import Progress
from medr1_ray.records.tracker import Tracker
from medr1_ray.run.parity.gate import ParityError
from medr1_ray.run.phases import Phases
from medr1_ray.run.replay import Replay
from medr1_ray.run.saving import CheckpointWriter, Saving
from medr1_ray.run.session import Session
from medr1_ray.run.skipped_steps import SkippedSteps
from medr1_ray.run.weight_sync import WeightSync
from medr1_ray.types import CompletedPrompt, Group, Prompt, Sampling
from medr1_ray.weights.messages import WeightUpdate
from tests.unit.evaluation.pictures import Encoder as PictureEncoder
from tests.unit.evaluation.pictures import questions
from tests.unit.pool.world import QUESTION, Encoder, World, a_config, a_stream, install, reward_actors, update

STATISTICS = PolicyStatistics(1.0, 0.0, 0.0, 1.0, 0.0, None, 4, 1e-6, 1e-5, None)


class Learner:
    """Takes as long as it is told to, in the world's time; `statistics` are what it reports."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.seconds = 1.0
        self.publish_seconds = 0.0
        self.steps = 1
        self.statistics = STATISTICS
        self.norm = 1.0
        self.no_room = False
        self.copy_seconds = self.write_seconds = self.written_at = 0.0
        self.saving = Path()
        self.saves: list[str] = []
        self.published: list[int] = []

    def prefetch(self, groups: Sequence[Group]) -> None:
        """Nothing is begun early."""

    def update(self, groups: Sequence[Group], version: int, meanwhile: Callable[[], None]) -> UpdateReport:
        self._work(meanwhile, self.seconds)
        steps = (OptimizerStep(0.0, self.norm, 1e-4),) * self.steps
        return UpdateReport(version + self.steps, steps, self.statistics, len(groups), 0, 0, 4, 20, 1, 1e9, None, ())

    def imitate(
        self, demonstrations: Sequence[CompletedPrompt], version: int, meanwhile: Callable[[], None]
    ) -> ImitationReport:
        self._work(meanwhile, self.seconds)
        return ImitationReport(version + 1, OptimizerStep(0.5, self.norm, 1e-4), 4, 20, 1e9, None, ())

    def _work(self, meanwhile: Callable[[], None], seconds: float) -> None:
        end = self._world.now + seconds
        while self._world.now < end:
            self._world.now += 0.2
            meanwhile()

    def publish_weights(self, version: int, meanwhile: Callable[[], None]) -> WeightUpdate:
        self._work(meanwhile, self.publish_seconds)
        self.published.append(version)
        return update(version)

    def begin_save(self, folder: Path, meanwhile: Callable[[], None]) -> None:
        self._work(meanwhile, self.copy_seconds)
        self.saving = folder
        self.saves.append(folder.name)
        self.written_at = self._world.now + self.write_seconds

    def is_saving(self) -> bool:
        return self._world.now < self.written_at

    def finish_save(self, meanwhile: Callable[[], None], *, briefly: bool) -> list[StoredFile]:
        self._work(meanwhile, max(0.0, self.written_at - self._world.now))
        if self.no_room:
            raise NotSavedError("learner-0 cannot write: no space left")
        (self.saving / "weights").write_text("")
        return [store(self.saving, "weights")]


class Gate:
    """Notes the versions that it was asked to check and to follow."""

    def __init__(self) -> None:
        self.checked: list[int] = []
        self.followed: list[int] = []
        self.seen_beside = Gap()

    def check(self, version: int) -> Gap:
        self.checked.append(version)
        return Gap(1e-6, 2e-6, 10)

    def follow(self, version: int) -> Gap:
        self.followed.append(version)
        return self.seen_beside


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    for module in ("run.phases", "pool.groups"):
        monkeypatch.setattr(f"medr1_ray.{module}.time.monotonic", lambda: world.now)
        monkeypatch.setattr(f"medr1_ray.{module}.time.time", lambda: world.now)
    return world


def a_session(
    world: World,
    folder: Path,
    train: dict[str, Any],
    run: dict[str, Any] | None = None,
    resumed: RunState | None = None,
    **rollout: Any,
) -> Session:
    train = {"steps": 100, "prompts_per_step": 8, "group_size": 4, **train}
    config = a_config(train, engine={"max_num_seqs": 8}, **rollout)
    folder.mkdir(exist_ok=True)
    config = config.model_copy(update={"run": config.run.model_copy(update=run or {})})
    actors = RolloutActors(config, world, world.said.append, world.launch, lambda: world.now)
    stream = a_stream()
    pool = RolloutPool(config, actors, reward_actors(world, config), stream, Ledger(lambda: world.now))
    actors.wait_until_up()
    stream.take(5)
    step, lines = (resumed.step, resumed.metric_lines) if resumed else (0, 0)
    tracker = Tracker(config, folder, step, lines)
    learner: Any = Learner(world)
    totals = resumed.totals if resumed else Totals()
    phases = Phases(totals.seconds)
    checkpoints = Checkpoints(folder / "checkpoints", 2, None, tracker.accuracies)
    return Session(
        config=config,
        step=step,
        learner=learner,
        pool=pool,
        weights=WeightSync(learner, pool),
        encoder=Encoder(),
        stream=stream,
        gate=Gate(),  # type: ignore[arg-type]
        # Each has a file and an image of its own, so that images can be shuffled.
        evaluation_prompts=EvaluationPrompts(questions([10, 20, 30, 40, 50]), PictureEncoder(), world.said.append),
        evaluations=EvaluationLog(folder, print, step),
        tracker=tracker,
        progress=Progress(config.train.steps, every_seconds=1e9),
        saving=Saving(
            config.run,
            CheckpointWriter(config, learner, checkpoints, phases),
            pool.poll,
            world.said.append,
            lambda: world.leaving,
            clock=lambda: world.now,
        ),
        totals=totals,
        phases=phases,
        scaling=Scaling.of(config),
        skipped_steps=SkippedSteps(config.learner, 0),
        alarms=Alarms(config.alarms, config.gap_mean_limit),
        replay=None,
    )


def one_step(session: Session) -> None:
    groups = session.take_groups()
    report = session.update(groups)
    session.sync_weights()
    session.log_step(groups, report)
    session.scale_rollouts()


def test_the_number_of_actors_follows_from_what_the_steps_took(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"max_staleness": 1}, actors=1, min_actors=1, max_actors=6, scale_every=3)
    session.sync_weights()
    for _ in range(12):
        one_step(session)
    # 8 groups, 2 at once, 2 seconds each: 8 actor-seconds beside 1 second of update and about 1 of weight sync.
    grown = session.pool.actor_counts().target
    assert 2 < grown <= 6
    assert session.pool.actor_counts().serving == grown
    session.learner.seconds = 30.0  # type: ignore[attr-defined]
    for _ in range(6):
        one_step(session)
    assert session.pool.actor_counts().target == 1


def test_a_lost_actor_is_replaced_while_the_learner_updates(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {}, actors=2)
    session.sync_weights()
    session.learner.seconds = 20.0  # type: ignore[attr-defined]
    groups = session.take_groups()
    world.draining["node of rollout-0"] = 5.0
    session.update(groups)
    assert session.pool.rollout_names == ["rollout-1", "rollout-2"], "before the weights of this update are there"


def test_metrics_and_checkpoints_count_actors_and_groups_that_were_issued_again(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 2}, actors=2)
    session.sync_weights()
    world.dead.add("rollout-0")
    while session.step < 2:
        one_step(session)
    session.save()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "pool/actors_lost" in line][-1]
    assert (last["pool/actors_lost"], last["pool/actors_wanted"]) == (1, 2)
    assert (last["ledger/groups_used"], last["ledger/groups_in_flight"]) == (2 * 8, 8)
    assert last["ledger/groups_reissued"] == 2
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / "state.json").read_text())
    assert (state["groups_reissued"], state["answers_late"]) == (2, 0)


def test_gap_and_actors_of_a_resumed_run_go_on(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 3}, actors=2)
    session.sync_weights()
    world.dead.add("rollout-0")
    while session.step < 2:
        one_step(session)
    state = read_state(session.save())
    # Two parity gates of 10 tokens, and 4 of each update; one of three actors was lost, two end with their driver.
    assert (state.totals.gap, state.totals.actors["asked"]) == (Gap(pytest.approx(1e-6), 1e-5, 28), 3)
    world.dead.clear()
    resumed = a_session(world, tmp_path, {"steps": 3}, None, state, actors=2)
    resumed.sync_weights()
    one_step(resumed)
    assert (lines_of(tmp_path)[-1]["pool/actors_lost"], lines_of(tmp_path)[-1]["pool/actors_serving"]) == (1, 2)
    totals = read_state(resumed.save()).totals
    assert totals.gap.tokens == 28 + 24
    assert totals.actors == {"asked": 3 + 2, "drained": 0, "cancelled": 0, "lost": 1, "failed": 0}
    for name in ("before", "after", "blank_image"):
        resumed.evaluations.add(name, 0, Evaluation(0.5, 1.0, 5, {}, {}), [])
    summary = json.loads(resumed.summarise().read_text())
    assert (summary["logprob_gap_max"], summary["rollout_actors"]) == (1e-5, totals.actors)


def gate_of(session: Session) -> Gate:
    gate: Any = session.gate
    return gate


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_parity_is_waited_for_at_the_start_and_after_the_first_update_alone(
    world: World, tmp_path: Path, max_staleness: int
) -> None:
    session = a_session(world, tmp_path, {"max_staleness": max_staleness}, actors=1)
    session.sync_weights()
    for _ in range(3):
        one_step(session)
    gate = gate_of(session)
    assert (gate.checked, gate.followed) == ([0, 1], [2, 3])
    session.sync_for_evaluation()
    assert (gate.checked, gate.followed) == ([0, 1, 3], [2, 3]), "before an evaluation of a supervised model always"


def test_what_the_gate_measures_beside_the_training_is_part_of_the_steps_gap(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"max_staleness": 1}, actors=1)
    gate_of(session).seen_beside = Gap(3e-6, 4e-6, 4)
    session.sync_weights()
    for _ in range(2):
        one_step(session)
    # 4 tokens of each update at 1e-6, and 4 of the gate's at 3e-6, at most 4e-6, with the second.
    assert [line["policy/logprob_gap_mean"] for line in lines_of(tmp_path)] == [1e-6, pytest.approx(2e-6)]
    assert [line["policy/logprob_gap_max"] for line in lines_of(tmp_path)] == [1e-5, 1e-5]
    learner: Any = session.learner
    learner.statistics = replace(STATISTICS, logprob_gap_tokens=0, logprob_gap_mean=None, logprob_gap_max=None)
    one_step(session)
    last = lines_of(tmp_path)[-1]
    assert (last["policy/logprob_gap_mean"], last["policy/logprob_gap_max"]) == (3e-6, 4e-6), "the gate's alone"


def test_a_gap_beyond_the_limit_ends_the_run_after_it_was_recorded(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {}, actors=1)
    session.sync_weights()
    one_step(session)
    # 10 tokens of the gate at 1e-6 at the start and after the update each, and 4 of the update at 1e-6.
    assert session.totals.gap == Gap(pytest.approx(1e-6), 1e-5, 24)
    learner: Any = session.learner
    learner.statistics = replace(STATISTICS, logprob_gap_mean=2e-3)
    with pytest.raises(ParityError, match=r"^step 2: .* differ from the learner's by 2\.00e-03 nats .*over 4 tokens"):
        one_step(session)
    assert [line["policy/logprob_gap_mean"] for line in lines_of(tmp_path)] == [1e-6, 2e-3]
    learner.statistics = replace(STATISTICS, logprob_gap_mean=math.nan)
    with pytest.raises(ParityError, match=r"differ from the learner's by nan nats"):
        one_step(session)


@pytest.mark.parametrize(("max_staleness", "in_flight"), [(0, 0), (1, 8)])
def test_engines_have_work_during_an_update_only_where_rollouts_may_be_older(
    world: World, tmp_path: Path, max_staleness: int, in_flight: int
) -> None:
    session = a_session(world, tmp_path, {"max_staleness": max_staleness}, actors=1)
    session.sync_weights()
    seen: list[int] = []
    update = session.learner.update

    def watched(*arguments: Any, **named: Any) -> UpdateReport:
        seen.append(session.pool.ledger.counts().in_flight)
        return update(*arguments, **named)

    session.learner.update = watched  # type: ignore[method-assign]
    session.update(session.take_groups())
    assert seen == [in_flight]


def test_rewards_are_given_and_groups_assigned_while_the_learner_publishes(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"max_staleness": 2}, actors=1)
    session.sync_weights()
    session.take_groups()
    ledger = session.pool.ledger
    waiting, ready = ledger.at(GroupStage.WAITING), len(ledger.at(GroupStage.READY))
    assert len(waiting) > 4
    session.learner.publish_seconds = 6.0  # type: ignore[attr-defined]
    session.weights.sync(0)
    # Two groups at once, each in 2 seconds.
    assert len(ledger.at(GroupStage.READY)) >= ready + 4
    assert len(ledger.at(GroupStage.WAITING)) <= len(waiting) - 4


def test_room_is_made_before_the_learner_works(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {}, actors=1)
    session.sync_weights()
    order: list[str] = []
    session.weights.make_room = lambda: order.append("room")  # type: ignore[method-assign]
    for name in ("update", "imitate"):
        call = getattr(session.learner, name)
        setattr(session.learner, name, lambda *a, call=call, name=name, **k: order.append(name) or call(*a, **k))
    session.update(session.take_groups())
    session.imitate([])
    assert order == ["room", "update", "room", "imitate"]


def test_several_optimizer_steps_a_rollout_are_several_steps_of_the_run(world: World, tmp_path: Path) -> None:
    run = {"save_every": 3, "rollouts_every": 4, "evaluate_every": 5}
    train = {"steps": 10, "updates_per_rollout": 2, "max_staleness": 1}
    session = a_session(world, tmp_path, train, run, actors=1)
    session.learner.steps = 2  # type: ignore[attr-defined]
    session.sync_weights()
    while session.step < 10:
        one_step(session)
        session.evaluate_if_due()
        session.save_if_due()
    session.save()
    # After steps 2, 4, 6, 8, 10: saved where a multiple of 3 was passed, the newest two kept; rollouts at multiples of
    # 4; evaluated past 5, and not at the end.
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-10", "checkpoint-6"]
    rollouts = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert rollouts == ["step-000004.jsonl", "step-000008.jsonl"]
    assert [path.stem for path in tmp_path.glob("step-*.json")] == ["step-6"]


def test_the_start_model_is_evaluated_once_and_the_trained_one_without_its_images_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[float] = []
    run = RolloutPool.run

    def watched(pool: RolloutPool, given: Iterable[Prompt], sampling: Sampling) -> list[Group]:
        assert (sampling.group_size, sampling.temperature) == (1, 0.0)
        prompts = list(given)
        images.append(float(np.mean([prompt.image.mean() for prompt in prompts])))
        return run(pool, prompts, sampling)

    monkeypatch.setattr(RolloutPool, "run", watched)
    session = a_session(world, tmp_path, {"steps": 1}, actors=1)
    session.sync_weights()
    for evaluate, logged in ((session.evaluate_before, 1), (session.evaluate_before, 1), (session.evaluate_after, 2)):
        evaluate()
        assert len([line for line in lines_of(tmp_path) if "eval/accuracy" in line]) == logged, "those with the images"
    assert images == [30.0, 30.0, 0.0, 30.0]
    assert {path.stem for path in tmp_path.glob("*.json")} == {"before", "after", "blank_image", "shuffled_image"}
    assert session.totals.seconds["evaluation"] > 0


@pytest.mark.parametrize("of_step", [None, 1])
def test_trained_weights_are_never_called_those_of_the_start(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], of_step: int | None
) -> None:
    session = a_session(world, tmp_path, {"steps": 1}, actors=1)
    session.sync_weights()
    session.evaluate_before()
    one_step(session)
    state = read_state(session.save())
    (tmp_path / "before.json").unlink()
    if of_step:  # what an earlier version made in its place
        session.evaluations.add("before", of_step, Evaluation(0.5, 1.0, 5, {}, {}), [])
    resumed = a_session(world, tmp_path, {"steps": 1}, None, state, actors=1)
    resumed.sync_weights()
    resumed.evaluate_before()
    said = capsys.readouterr().out
    assert said.count("evaluation before: left out: there is no evaluations/before.json of the start model") == 1
    resumed.evaluate_after()
    summary = json.loads(resumed.summarise().read_text())
    assert (summary["eval"]["before"], summary["eval"]["after"]["n"]) == (None, 5)
    assert "accuracy unknown before, 0.000 after 1 steps" in capsys.readouterr().out


def test_an_evaluation_whose_images_cannot_be_read_any_more_is_left_out_and_the_run_goes_on(
    world: World, tmp_path: Path
) -> None:
    session = a_session(world, tmp_path, {"steps": 2}, {"evaluate_every": 1}, actors=1)
    encoder = PictureEncoder()
    session.evaluation_prompts = EvaluationPrompts(questions([1, 2, 3]), encoder, world.said.append)
    stream = StringIO()
    session.progress = Progress(2, stream, every_seconds=0)
    session.sync_weights()
    session.evaluate_before()
    one_step(session)
    encoder.refused["q1"] = "image unreadable"
    session.evaluate_if_due()
    assert "evaluation step-1: left out: an evaluation question can no longer be asked: image unreadable (q1)" in (
        stream.getvalue()
    )
    assert session.tracker.accuracies.keys() == {0}
    assert session.pool._workloads == [session.pool._training], "nothing of it is generated any more"
    one_step(session)
    with pytest.raises(NoLongerReadableError):  # after the last checkpoint: a resume evaluates
        session.evaluate_after()


def test_one_question_is_evaluated_to_the_end(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 1}, actors=1)
    session.evaluation_prompts = EvaluationPrompts(questions([1]), PictureEncoder(), world.said.append)
    session.sync_weights()
    session.evaluate_before()
    session.evaluate_after()
    assert {path.stem for path in tmp_path.glob("*.json")} == {"before", "after", "blank_image"}
    assert session.summarise().exists()


def test_a_supervised_step_is_recorded_without_rollouts(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 2}, {"save_every": 1}, actors=1)
    prompts = session.take_prompts()
    assert len(prompts) == 8
    completions = session.pool.ledger.counts()
    session.sync_for_evaluation()
    (group,) = session.pool.run(prompts[:1], Sampling(1, 4, 0.0))
    session.pool.drain_spans()
    demonstrations = [(prompt, group.completions) for prompt in prompts]
    report = session.imitate(demonstrations)
    session.log_imitation(demonstrations, report)
    assert session.step == 1
    assert session.totals.completions == 8
    assert session.pool.ledger.counts() == completions, "nothing is generated for training"
    (line,) = lines_of(tmp_path)
    assert (line["step"], line["loss/total"], line["completion/length_tokens_mean"]) == (1, 0.5, 1.0)
    spans = [json.loads(each) for each in (tmp_path / "spans.jsonl").read_text().splitlines()]
    assert [each["phase"] for each in spans] == ["data", "weight_sync", "parity", "update"]
    assert session.save().name == "checkpoint-1"
    assert not (tmp_path / "recorded").exists()


def test_of_a_supervised_step_that_is_skipped_the_demonstrations_are_kept(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 2}, actors=1)
    session.sync_for_evaluation()
    (prompt, *_) = session.take_prompts()
    (group,) = session.pool.run([prompt], Sampling(1, 4, 0.0))
    demonstrations = [(prompt, group.completions)]
    for norm in (np.inf, 1.0):
        session.learner.norm = norm  # type: ignore[attr-defined]
        session.log_imitation(demonstrations, session.imitate(demonstrations))
    assert [path.name for path in (tmp_path / "recorded").iterdir()] == ["demonstrations-000001.safetensors"]


def test_a_checkpoint_says_where_the_run_stands(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 4}, actors=1)
    session.sync_weights()
    one_step(session)
    checkpoint = session.save()
    assert json.loads((checkpoint / ASKED_WITH_FILE).read_text())["mode"] == session.config.mode
    state = read_state(checkpoint)
    assert (state.step, state.groups_used, state.totals.completions) == (1, 8, 32)
    assert state.unused_prompts == tuple(session.pool.unused_prompt_ids())
    assert len(state.unused_prompts) == 8, "of the next step, which the engines have begun"
    assert state.stream == session.stream.state()
    assert state.config_digest == config_digest(session.config)
    # In the world's time, which moves in steps of up to half a second: 1 second of update, and 1 of each of two syncs.
    seconds = state.totals.seconds
    assert 1.0 <= seconds["update"] < 1.5
    assert 2.0 <= seconds["weight_sync"] < 3.0
    assert seconds["rollout"] >= 8.0, "four rounds of two groups, 2 seconds each"


def test_a_step_costs_what_its_devices_cost(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {}, actors=2)
    prices = {"learner": {"price_per_hour": 3.0}, "rollout": {"price_per_hour": 1.0}}
    hardware = HardwareSettings.model_validate(prices)
    session.config = session.config.model_copy(update={"hardware": hardware})
    session.sync_weights()
    one_step(session)
    (line,) = lines_of(tmp_path)
    # Without GPUs a process counts as one device: one learner rank and two actors, 5 an hour, over 8 groups.
    assert line["perf/cost_per_1000_groups"] == pytest.approx(5 / 3600 * line["time/step_seconds"] * 1000 / 8)
    # Four ranks on half a GPU each and two actors on four each: 3 * 2 + 1 * 8.
    learner = session.config.learner.model_copy(update={"world_size": 4, "gpus_per_rank": 0.5})
    rollout = session.config.rollout.model_copy(update={"gpus_per_actor": 4})
    session.config = session.config.model_copy(update={"learner": learner, "rollout": rollout})
    assert Resources.of(session.config, rollout_actors=2) == Resources(4, 2, 1, 14.0)


def test_a_person_is_told_of_steps_and_evaluations_and_of_the_results(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 1}, actors=1)
    stream = StringIO()
    session.progress = Progress(1, stream, every_seconds=0)
    session.sync_weights()
    session.evaluate_before()
    one_step(session)
    for name in ("after", "blank_image", "shuffled_image"):
        session._evaluate(name, session.evaluation_prompts)
    session.save()
    path = session.summarise()
    summary = json.loads(path.read_text())
    spans = [json.loads(each) for each in (tmp_path / "spans.jsonl").read_text().splitlines()]
    phases = [each["phase"] for each in spans if each["actor"] == "driver"]
    assert phases[-5:] == [*["evaluation"] * 3, "checkpoint", "checkpoint"], "and what came after the last step"
    assert (path, summary["steps"], summary["completions"]) == (tmp_path / "summary.json", 1, 32)
    said = stream.getvalue()
    # One answer to each of five questions: the first of a group, which is wrong.
    assert "evaluation before: accuracy 0.000, format 0.000, n 5" in said
    assert "step 1/1  reward 0.50  accuracy 0.50" in said
    assert said.rstrip().splitlines()[-4].startswith("accuracy 0.000 before, 0.000 after 1 steps")
    assert said.endswith(f"\nmetrics, evaluations and checkpoints are in {tmp_path}\n")


def test_every_phase_of_a_step_is_a_span_of_it(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 2}, actors=1)
    session.sync_weights()
    for _ in range(2):
        one_step(session)
    spans = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    of_driver = [(span["step"], span["phase"]) for span in spans if span["actor"] == "driver"]
    assert of_driver == [
        *((1, phase) for phase in ("weight_sync", "parity", "rollout", "update", "weight_sync", "parity")),
        *((2, phase) for phase in ("rollout", "update", "weight_sync", "parity")),
    ]
    assert {span["actor"] for span in spans} == {"driver", "rollout-0", "reward-0"}


def run_to_the_end(session: Session) -> None:
    """As the loop of `train.py`."""
    session.sync_weights()
    with session.saved_when_stopped():
        while session.step < session.config.train.steps:
            one_step(session)
            session.evaluate_if_due()
            session.save_if_due()
            session.stop_if_asked()


class StopsInMidst:
    """Sends this process SIGTERM at the first wait of which `when` is true, and notes the time."""

    def __init__(self, world: World, when: Callable[[], bool]) -> None:
        self.at_seconds: float | None = None
        self._world = world
        self._when = when
        world.happens = self._look

    def _look(self) -> None:
        if self.at_seconds is None and self._when():
            self.at_seconds = self._world.now
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(session: Session) -> None:
    with heeding_signals(), pytest.raises(KeyboardInterrupt):
        run_to_the_end(session)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_update_is_finished_logged_and_saved_before_the_run_ends(
    world: World, tmp_path: Path, number: signal.Signals
) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, {"save_every": 0}, actors=1)
    learner: Any = session.learner
    update = learner.update

    def signalled(*arguments: Any, **named: Any) -> UpdateReport:
        if session.step == 2:
            os.kill(os.getpid(), number)
        return update(*arguments, **named)

    learner.update = signalled
    stopped(session)
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-3"
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]
    assert learner.published[-1] == 2, "no engine needs the weights of the last step"


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_wait_for_groups_is_broken_off_and_a_resumed_run_skips_and_repeats_no_question(
    world: World, tmp_path: Path, max_staleness: int
) -> None:
    session = a_session(world, tmp_path, {"steps": 6, "max_staleness": max_staleness}, actors=1)
    used: list[str] = []
    take = session.pool.take

    def watched(*arguments: Any) -> list[Group]:
        groups = take(*arguments)
        used.extend(group.prompt.id for group in groups)
        return groups

    session.pool.take = watched  # type: ignore[method-assign]
    ledger = session.pool.ledger
    # One actor does two groups at once, each in 2 seconds: some more rounds for this step.
    stop = StopsInMidst(world, lambda: session.step == 2 and 0 < len(ledger.at(GroupStage.READY)) < 4)
    stopped(session)
    assert stop.at_seconds is not None
    assert world.now - stop.at_seconds <= 1.0, "it does not wait for the other groups"
    state = read_state(latest_checkpoint(tmp_path / "checkpoints"))
    assert (state.step, state.groups_used) == (2, 16)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    # The resumed run: first what was issued and not used, then the stream from where it was.
    again = PromptStream((QUESTION,), Encoder(), 0, state.stream)
    later = [prompt.id for prompt in (*again.reissue(state.unused_prompts), *again.take(20))]
    undisturbed = [prompt.id for prompt in a_stream().take(5 + len(used) + len(later))][5:]  # 5 of the evaluation
    assert sorted([*used, *later]) == sorted(undisturbed)


def test_an_evaluation_is_broken_off_and_made_by_the_resumed_run(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 4}, {"evaluate_every": 2}, actors=1)
    run = session.pool.run
    evaluating: list[bool] = []

    def watched(*arguments: Any) -> list[Group]:
        evaluating.append(True)
        return run(*arguments)

    session.pool.run = watched  # type: ignore[method-assign]
    StopsInMidst(world, lambda: bool(evaluating))
    stopped(session)
    assert read_state(latest_checkpoint(tmp_path / "checkpoints")).step == 2
    assert session.evaluations.find("step-2") is None

    world.happens = lambda: None
    state = read_state(latest_checkpoint(tmp_path / "checkpoints"))
    # The second time it was killed before its next checkpoint: its line is cut off, and written again.
    for _ in range(2):
        resumed = a_session(world, tmp_path, {"steps": 4}, {"evaluate_every": 2}, state, actors=1)
        resumed.sync_weights()
        resumed.evaluate_before()
        assert [line["step"] for line in lines_of(tmp_path) if "eval/accuracy" in line][-1:] == [2]
    assert [path.stem for path in sorted(tmp_path.glob("*.json"))] == ["step-2"]
    assert [line["step"] for line in lines_of(tmp_path)].count(2) == 2, "of the step, and of its evaluation"


def test_nothing_is_written_again_where_the_last_step_is_saved(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 4}, {"save_every": 1}, actors=1)
    StopsInMidst(world, lambda: session.step == 2 and bool(session.pool.ledger.at(GroupStage.READY)))
    stopped(session)
    saves = session.learner.saves  # type: ignore[attr-defined]
    assert saves == [".checkpoint-1.partial", ".checkpoint-2.partial"], "one for each step"


def test_a_run_that_has_learned_nothing_saves_nothing(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 4}, actors=1)
    StopsInMidst(world, lambda: bool(session.pool.ledger.at(GroupStage.READY)))
    stopped(session)
    assert not (tmp_path / "checkpoints").exists()


def test_a_step_that_is_done_is_saved_during_a_wait_before_a_node_of_the_learners_leaves(
    world: World, tmp_path: Path
) -> None:
    session = a_session(world, tmp_path, {"steps": 4}, actors=1)

    def notice() -> None:
        if session.step == 2 and session.pool.ledger.at(GroupStage.READY):
            world.leaving = "Ray drains the node of learner-0 (120 s left)"

    world.happens = notice
    session.sync_weights()
    one_step(session)
    one_step(session)
    assert not (tmp_path / "checkpoints").exists()
    session.take_groups()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-2"
    said = [line for line in world.said if "drains" in line]
    assert said == [f"{world.leaving}: each step is saved until then"]


def test_a_step_is_saved_once(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 4}, actors=1)
    session.sync_weights()
    one_step(session)
    first = session.save()
    (first / "mark").touch()
    assert session.save() == first
    assert (first / "mark").exists()


def test_a_checkpoint_that_cannot_be_written_is_tried_again_after_the_next_step(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, {"save_every": 2}, actors=1)
    learner: Any = session.learner
    session.sync_weights()
    saved = []
    for step in range(1, 7):
        learner.no_room = step in (2, 3)
        one_step(session)
        session.save_if_due()
        saved.append(sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")))
    assert saved == [[], [], [], ["checkpoint-4"], ["checkpoint-4"], ["checkpoint-4", "checkpoint-6"]]
    said = "\n".join(world.said)
    assert said.count("NOT SAVED: learner-0 cannot write: no space left. Earlier checkpoints are as they were") == 1
    assert said.count("saved at last: ") == 1
    learner.no_room = True
    one_step(session)
    with pytest.raises(NotSavedError):  # the last one of a run must be there
        session.save()


def test_a_run_goes_on_while_its_checkpoint_is_written(world: World, tmp_path: Path) -> None:
    train = {"steps": 9, "max_staleness": 2}
    session = a_session(world, tmp_path, train, {"save_every": 2}, actors=1)
    learner: Any = session.learner
    learner.write_seconds = 25.0  # each step takes 8
    session.sync_weights()
    folder = tmp_path / "checkpoints"
    for _ in range(2):
        one_step(session)
    session.save_if_due()
    begun, unused = world.now, session.pool.unused_prompt_ids()
    one_step(session)
    session.save_if_due()
    assert [path.name for path in folder.iterdir()] == [".checkpoint-2.partial"]
    assert world.now - begun < 25
    one_step(session)
    session.save_if_due()
    assert world.now - begun > 25, "the next one waits"
    state = read_state(latest_checkpoint(folder))
    assert (state.step, state.groups_used, state.metric_lines) == (2, 16, 2)
    assert state.unused_prompts == tuple(unused), "as it was when the write began"


def test_a_checkpoint_is_published_in_a_wait_for_groups(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, {"save_every": 1}, actors=1)
    learner: Any = session.learner
    learner.write_seconds = 3.0
    session.sync_weights()
    one_step(session)
    session.save_if_due()
    assert not (tmp_path / "checkpoints" / "checkpoint-1").exists()
    begun = world.now
    session.take_groups()
    assert world.now - begun > 3
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-1"


def test_rewards_are_given_while_the_ranks_copy_and_are_not_in_that_state(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"max_staleness": 2}, {"save_every": 1}, actors=1)
    session.sync_weights()
    one_step(session)
    session.learner.copy_seconds = 9.0  # type: ignore[attr-defined]
    ready = len(session.pool.ledger.at(GroupStage.READY))
    unused, stream = session.pool.unused_prompt_ids(), session.stream.state()
    session.save_if_due()
    assert len(session.pool.ledger.at(GroupStage.READY)) >= ready + 4
    state = read_state(session.save())
    assert (state.unused_prompts, state.stream) == (tuple(unused), stream)


def test_an_error_of_the_run_costs_no_checkpoint_that_is_being_written(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, {"save_every": 1}, actors=1)
    learner: Any = session.learner
    learner.write_seconds = 60.0
    session.sync_weights()

    def two_steps() -> None:
        with session.saved_when_stopped():
            one_step(session)
            session.save_if_due()
            learner.statistics = replace(STATISTICS, logprob_gap_mean=1.0)
            one_step(session)

    with pytest.raises(ParityError):
        two_steps()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-1"


def test_a_stop_waits_for_the_write_under_way(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, {"save_every": 2}, actors=1)
    learner: Any = session.learner
    learner.write_seconds = 60.0
    StopsInMidst(world, lambda: session.step == 2 and learner.written_at > world.now)
    stopped(session)
    assert world.now >= learner.written_at
    assert learner.saves == [".checkpoint-2.partial"]
    assert latest_checkpoint(tmp_path / "checkpoints").name == "checkpoint-2"


def test_a_skipped_step_is_counted_and_its_rollouts_are_kept(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, {"rollouts_every": 0}, actors=1)
    learner: Any = session.learner
    session.sync_weights()
    for norm in (1.0, np.inf, 1.0, np.nan, np.nan):
        learner.norm = norm
        one_step(session)
    assert [line["optim/steps_skipped"] for line in lines_of(tmp_path)] == [0, 1, 1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
        f"step-{step:06}.jsonl" for step in (2, 4, 5)
    ]
    said = capsys.readouterr().out
    assert "step 5: the gradient was not finite, nothing was learned from it; 3 so far" in said
    assert read_state(session.save()).steps_skipped == 3
    with pytest.raises(RuntimeError, match=r"gradients of 3 optimizer steps in a row were not finite"):
        one_step(session)
    assert lines_of(tmp_path)[-1]["optim/steps_skipped"] == 4, "the step that ends the run is recorded"


def test_a_checkpoint_whose_evaluation_came_later_is_kept_as_the_best(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, actors=1)
    session.sync_weights()
    one_step(session)
    session.save()
    # Broken off before, and made by a resumed run, which has the checkpoint already.
    session._evaluate("step-1", session.evaluation_prompts)
    for _ in range(3):
        one_step(session)
        session.save()
    assert session.tracker.accuracies == {1: 0.0}
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]


def test_an_alarm_is_told_and_counted(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = a_session(world, tmp_path, {"steps": 9}, actors=1)
    session.alarms = Alarms(AlarmSettings(window=2, entropy_below=5.0), session.config.gap_mean_limit)
    session.sync_weights()
    for _ in range(3):
        one_step(session)
    assert [line["alarms/active"] for line in lines_of(tmp_path)] == [0, 1, 1]
    assert capsys.readouterr().out.count("step 2: ALARM: policy/entropy is ") == 1


def test_a_run_that_records_its_groups_can_be_replayed(world: World, tmp_path: Path) -> None:
    session = a_session(world, tmp_path / "first", {"steps": 9}, {"record_groups": True}, actors=1)
    session.sync_weights()
    taken = []
    take_groups = session.take_groups

    def watched() -> list[Group]:
        taken.append(take_groups())
        return taken[-1]

    session.take_groups = watched  # type: ignore[method-assign]
    for _ in range(2):
        one_step(session)
    recorded = tmp_path / "first" / "recorded"
    assert sorted(path.name for path in recorded.iterdir()) == [f"step-{step:06}.safetensors" for step in (1, 2)]

    again = a_session(world, tmp_path / "second", {"steps": 9}, actors=1)
    again.replay = Replay(recorded, again.pool.ledger, lambda pixels: pixels)
    again.sync_weights()
    for expected in taken:
        groups = again.take_groups()
        assert [group.prompt.id for group in groups] == [group.prompt.id for group in expected]
        again.log_step(groups, again.update(groups))
        again.sync_weights()
    assert gate_of(again).followed == [], "nothing is generated beside it, so that it is the same every time"
    first, second = lines_of(tmp_path / "first"), lines_of(tmp_path / "second")
    assert [line["reward/total_mean"] for line in first] == [line["reward/total_mean"] for line in second]
    assert second[-1]["ledger/groups_issued"] == second[-1]["ledger/groups_used"] == 16, "the pool issues nothing"


@pytest.mark.parametrize("updates", [1, 2])
def test_rollouts_alone_are_of_the_start_model(world: World, tmp_path: Path, updates: int) -> None:
    train = {"steps": 6, "max_staleness": updates - 1, "updates_per_rollout": updates}
    session = a_session(world, tmp_path, train, actors=1)
    session.sync_weights()
    for _ in range(3):
        session.record_rollouts()
    # Under the steps by which a replay asks for them.
    groups = [group for n in (1, 2, 3) for group in read_groups(tmp_path / "recorded", n * updates)]
    assert len({group.prompt.id for group in groups}) == 24
    assert {int(version) for group in groups for version in group.completions.versions} == {0}
    assert not (tmp_path / "metrics.jsonl").exists() or lines_of(tmp_path) == [], "nothing was learned"
