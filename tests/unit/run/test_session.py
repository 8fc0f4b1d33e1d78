"""The loop's calls on a pool without Ray and a learner that only counts: what a session does between the two."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.evaluation.in_training import EvaluationLog
from medr1_ray.learner.messages import Gap, OptimizerStep, PolicyStatistics, UpdateReport
from medr1_ray.pool.actors import RolloutFleet
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.scaling import Scaling
from medr1_ray.records.checkpoints import Checkpoints
from medr1_ray.records.summary import Totals
from medr1_ray.records.terminal import Progress
from medr1_ray.records.tracker import Tracker
from medr1_ray.run.session import Session
from medr1_ray.run.weight_sync import WeightChannel
from medr1_ray.types import Group, Prompt
from medr1_ray.weights.messages import WeightUpdate
from tests.unit.pool.world import Encoder, RewardActor, World, a_config, a_stream, install, update

STATISTICS = PolicyStatistics(1.0, 0.0, 0.0, 1.0, 0.0, None, 4, 1e-6, 1e-5, None)


class Learner:
    """Takes as long as it is told to, in the world's time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.seconds = 1.0

    def offer(self, groups: Sequence[Group]) -> None:
        """Nothing is begun early."""

    def update(self, groups: Sequence[Group], version: int, meanwhile: Callable[[], None]) -> UpdateReport:
        end = self._world.now + self.seconds
        while self._world.now < end:
            self._world.now += 0.2
            meanwhile()
        step = OptimizerStep(0.0, 1.0, 1e-4)
        return UpdateReport(version + 1, (step,), STATISTICS, len(groups), 0, 0, 4, 20, 1e9, None, ())

    def export_weights(self, version: int) -> WeightUpdate:
        return update(version)

    def save(self, folder: Path) -> None:
        (folder / "weights").write_text("")


class Gate:
    def check(self, version: int) -> Gap:
        return Gap()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    for module in ("session", "pool"):
        monkeypatch.setattr(f"medr1_ray.{module}.time.monotonic", lambda: world.now)
        monkeypatch.setattr(f"medr1_ray.{module}.time.time", lambda: world.now)
    return world


def a_session(world: World, folder: Path, train: dict[str, Any], **rollout: Any) -> Session:
    train = {"steps": 100, "prompts_per_step": 8, "group_size": 4, **train}
    config = a_config(train, engine={"max_num_seqs": 8}, **rollout)
    fleet = RolloutFleet(config, world, world.said.append, world.launch, lambda: world.now)  # type: ignore[arg-type]
    stream = a_stream()
    pool = RolloutPool(config, fleet, [RewardActor(world)], world, stream, Ledger(lambda: world.now))  # type: ignore[arg-type]
    fleet.wait_until_up()
    prompts: list[Prompt] = stream.take(5)
    learner: Any = Learner(world)
    return Session(
        config=config,
        step=0,
        learner=learner,
        pool=pool,
        weights=WeightChannel(learner, pool),
        encoder=Encoder(),
        stream=stream,
        gate=Gate(),  # type: ignore[arg-type]
        evaluation_prompts=prompts,
        evaluations=EvaluationLog(folder),
        tracker=Tracker(config, folder),
        progress=Progress(config.train.steps, every_seconds=1e9),
        checkpoints=Checkpoints(folder / "checkpoints", 2),
        totals=Totals(),
        scaling=Scaling.of(config),
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
    grown = session.pool.membership().target
    assert 2 < grown <= 6
    assert session.pool.membership().serving == grown
    session.learner.seconds = 30.0  # type: ignore[attr-defined]
    for _ in range(6):
        one_step(session)
    assert session.pool.membership().target == 1


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

