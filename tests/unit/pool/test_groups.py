"""The pool and its fleet without Ray: whatever happens to actors, every step gets its groups and the books add up."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from medr1_ray.pool.actor_states import Leave
from medr1_ray.pool.actors import RolloutFleet
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.types import Sampling
from tests.unit.pool.world import QUESTION, Encoder, RewardActor, World, a_config, a_stream, install, update


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    monkeypatch.setattr("medr1_ray.pool.groups.time.monotonic", lambda: world.now)
    return world


def a_pool(world: World, max_staleness: int = 0, **rollout: Any) -> tuple[RolloutFleet, RolloutPool]:
    train = {"steps": 100, "prompts_per_step": 6, "group_size": 4, "max_staleness": max_staleness}
    config = a_config(train, engine={"max_num_seqs": 8}, **rollout)
    fleet = RolloutFleet(config, world, world.said.append, world.launch, lambda: world.now)  # type: ignore[arg-type]
    ledger = Ledger(lambda: world.now)
    pool = RolloutPool(config, fleet, [RewardActor(world)], world, a_stream(), ledger)  # type: ignore[arg-type]
    fleet.wait_until_up()
    pool.load_weights(update(0))
    return fleet, pool


def actors_of(groups: Any) -> Counter[str]:
    return Counter(group.completions.actor for group in groups)


def test_an_actor_gets_no_more_than_its_engine_samples_at_once(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    generating = [entry[1] for entry in world.pending]
    assert Counter(generating) == {"rollout-0": 2, "rollout-1": 2}, "8 sequences are 2 groups of 4; 2 groups wait"
    assert len(pool.take(0)) == 6


def test_engines_begin_while_prompts_are_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pool = a_pool(world, actors=2)
    generating: list[int] = []
    encode = Encoder.encode

    def watched(encoder: Encoder, question: Any, prompt_id: str) -> Any:
        generating.append(len(world.pending))
        return encode(encoder, question, prompt_id)

    monkeypatch.setattr(Encoder, "encode", watched)
    pool.fill(versions_ahead=0)
    assert generating == [0, 0, 2, 2, 4, 4], "every actor has a group before another two are made"


def test_what_an_engine_samples_at_once_counts_in_sequences(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    assert len(pool.take(0)) == 6
    prompts = [Encoder().encode(QUESTION, f"evaluation:{i}") for i in range(20)]
    at_once: list[int] = []
    world.happens = lambda: at_once.append(sum(entry[1] == "rollout-0" for entry in world.pending))
    pool.run(prompts, Sampling(1, 4, 0.0))
    assert max(at_once) == 8, "as many answers as the engine samples, not as many as groups of the training"
    pool.run(prompts[:1], Sampling(20, 4, 1.0))  # more than an engine samples at once is given to it all the same


def test_another_run_begins_at_version_0_on_actors_that_nobody_uses(world: World) -> None:
    fleet, pool = a_pool(world, actors=2)
    for version in range(3):
        assert len(pool.take(version)) == 6
        pool.load_weights(update(version + 1))
    pool.fill(versions_ahead=0)
    pool.finish()
    assert not world.pending
    fleet.forget_run()
    assert {actor.version for actor in fleet.up.values()} == {-1}
    config = a_config({"steps": 100, "prompts_per_step": 6, "group_size": 4}, actors=2)
    again = RolloutPool(config, fleet, [RewardActor(world)], world, a_stream(), Ledger(lambda: world.now))  # type: ignore[arg-type]
    again.load_weights(update(0))
    assert {int(v) for group in again.take(0) for v in group.completions.versions} == {0}
    assert pool.ledger.counts().used == 18


def test_an_actor_that_joins_takes_what_waits(world: World) -> None:
    world.silent.add("rollout-1")
    _, pool = a_pool(world, actors=2, min_actors=1)
    world.group_seconds = 6.0
    pool.fill(versions_ahead=0)
    world.silent.clear()
    assert actors_of(pool.take(0))["rollout-1"] >= 2


def test_groups_of_a_dead_actor_are_issued_again_under_the_same_ids(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    before = pool.unused_prompt_ids()
    world.dead.add("rollout-0")
    groups = pool.take(0)
    assert [group.prompt.id for group in groups] == before
    assert "rollout-0" not in actors_of(groups)
    assert pool.ledger.counts().reissued == 2


def test_an_answer_of_an_actor_that_was_given_up_is_dropped_and_counted(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    world.silent.add("rollout-0")
    groups = pool.take(0)
    assert "rollout-0" not in actors_of(groups), "15 seconds are over: somebody else did it"
    assert any("rollout-0 is gone (lost)" in text and "unfinished after" in text for text in world.said)
    world.silent.clear()
    pool.poll(1.0)
    assert pool.ledger.counts().late == 2
    assert pool.ledger.counts().used == 6


def test_a_draining_actor_finishes_what_it_has_and_gets_nothing_new(world: World) -> None:
    fleet, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    world.draining["node of rollout-0"] = 60.0
    groups = pool.take(0)
    assert actors_of(groups)["rollout-0"] == 2
    assert pool.ledger.counts().reissued == 0
    assert fleet.counts().gone[Leave.DRAINED] == 1


def test_an_evaluation_outlives_its_actors_too(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    world.dead.add("rollout-1")
    prompts = [Encoder().encode(QUESTION, f"evaluation:{i}") for i in range(9)]
    groups = pool.run(prompts, Sampling(1, 4, 0.0))
    assert [group.prompt.id for group in groups] == [prompt.id for prompt in prompts]


def test_a_group_that_ten_actors_were_lost_with_is_taken_for_the_cause(world: World) -> None:
    _, pool = a_pool(world, actors=1)
    world.dead.update(f"rollout-{i}" for i in range(20))
    world.dead_from = "generate"
    with pytest.raises(RuntimeError, match="10 rollout actors in turn were lost while they generated"):
        pool.take(0)


@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("seed", range(8))
def test_every_step_gets_its_groups_through_random_faults(world: World, seed: int, max_staleness: int) -> None:
    rng = random.Random(seed)
    fleet, pool = a_pool(world, max_staleness, actors=3, min_actors=1, max_actors=5)
    used: list[str] = []

    def happens() -> None:
        for name in pool.rollout_names[1:]:
            fault = rng.random()
            if fault < 0.02:
                world.dead.add(name)
            elif fault < 0.03:
                world.silent.add(name)
            elif fault < 0.04:
                world.draining[f"node of {name}"] = rng.choice((1.0, 60.0))

    world.happens = happens
    for version in range(60):
        if rng.random() < 0.2:
            pool.scale(rng.randint(1, 5), "of the test")
        start = world.now
        pool.load_weights(update(version))
        assert world.now - start < 10 + 2, "no sync waits beyond its deadline"
        assert {actor.version for actor in fleet.serving.values()} <= {version}
        groups = pool.take(version)
        assert len(groups) == 6
        for group in groups:
            assert 0 <= version - int(group.completions.versions.min()) <= max_staleness
        used += [group.prompt.id for group in groups]
        pool.fill(versions_ahead=1)
        for _ in range(rng.randint(0, 3)):
            pool.poll(0.5)
        counts, members = pool.ledger.counts(), pool.membership()
        assert counts.used == 6 * (version + 1)
        assert counts.in_flight == len(pool.unused_prompt_ids())
        assert members.asked == members.present + sum(members.gone.values())
    assert len(set(used)) == len(used), "no group was used twice"
    assert pool.membership().asked > 10
    assert pool.ledger.counts().reissued > 0
