"""The probe and likelihoods: what is asked of which actor, and what follows where one does not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayError

from medr1_ray.base.stopping import StopAskedError, break_off_if_asked, finishing, heeding_signals
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.generation import Generation
from medr1_ray.pool.calls.measurements import Measurements
from medr1_ray.types import Continuations, Likelihoods, Prompt, Sampling
from medr1_ray.weights.messages import WeightUpdate
from tests.unit.pool.world import (
    QUESTION,
    Actor,
    Encoder,
    Method,
    World,
    a_config,
    ask_to_stop,
    install,
    update,
)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One whose actors also compute likelihoods, and note what they are asked: (actor, prompt)."""
    world = World()
    install(world, monkeypatch)
    world.asked = []  # type: ignore[attr-defined]

    def likelihoods(actor: Any) -> Method:
        def answer(request_id: str, prompt: Prompt, texts: Continuations) -> Any:
            world.asked.append((actor.name, prompt.id))  # type: ignore[attr-defined]
            return actor.name, 2.0, Likelihoods(prompt.id, np.zeros(1, np.float32), texts.lengths)

        return Method(answer)

    monkeypatch.setattr(Actor, "likelihoods", property(likelihoods), raising=False)
    return world


def measured(world: World, actors: int) -> tuple[RolloutActors, Measurements]:
    config = a_config(actors=actors, engine={"max_num_seqs": 4})
    made = RolloutActors(config, world, world.said.append, world.launch, lambda: world.now)
    made.wait_until_up()
    made.load_weights(update(0))
    generation = Generation(made)
    return made, Measurements(config.rollout, made, generation, waiting(made, generation), made.on_error)


def waiting(actors: RolloutActors, generation: Generation) -> Callable[[], None]:
    """As the pool waits."""

    def wait() -> None:
        break_off_if_asked()
        actors.poll(1.0)
        generation.send()
        if actors.up and not actors.serving:
            actors.load_weights(update(0))

    return wait


def prompts(count: int) -> list[Prompt]:
    return [Encoder().encode(QUESTION, f"p{i}") for i in range(count)]


def texts(count: int) -> Continuations:
    return Continuations(np.full(count, 7, np.int32), np.ones(count, np.int32))


def test_a_probe_asks_every_serving_actor_everything(world: World) -> None:
    _, measurements = measured(world, 3)
    found = measurements.probe(prompts(2), Sampling(2, 4, 1.0), version=0)
    assert found.keys() == {"rollout-0", "rollout-1", "rollout-2"}
    for name, completions in found.items():
        assert [each.prompt_id for each in completions] == ["p0", "p1"]
        assert {each.actor for each in completions} == {name}


def test_a_probe_is_broken_off_where_the_run_was_asked_to_stop(world: World) -> None:
    _, measurements = measured(world, 1)
    world.silent.add("rollout-0")
    begun = world.now
    ask_to_stop(world, begun + 3)
    with heeding_signals(), finishing("this step"), pytest.raises(StopAskedError):
        measurements.probe(prompts(2), Sampling(2, 4, 1.0), version=0)
    assert world.now - begun <= 4


@pytest.mark.parametrize("fault", ["silent", "dead", "engine_dead"])
def test_a_probe_leaves_out_who_is_lost_after_one_deadline_for_all(world: World, fault: str) -> None:
    actors, measurements = measured(world, 3)
    getattr(world, fault).update({"rollout-1", "rollout-2"})
    start = world.now
    assert measurements.probe(prompts(2), Sampling(2, 4, 1.0), version=0).keys() == {"rollout-0"}
    assert world.now - start <= (15 + 1 if fault == "silent" else 2)
    assert actors.take_gone() == ["rollout-1", "rollout-2"]


def test_where_all_are_lost_those_that_replace_them_are_probed(world: World) -> None:
    _, measurements = measured(world, 2)
    world.dead.update({"rollout-0", "rollout-1"})
    world.dead_from = "generate"
    found = measurements.probe(prompts(2), Sampling(2, 4, 1.0), version=0)
    assert found
    assert found.keys() <= {"rollout-2", "rollout-3"}
    world.dead.update(f"rollout-{i}" for i in range(20))
    with pytest.raises(RuntimeError, match=r"all rollout actors were lost .* probe, 3 times in a row"):
        measurements.probe(prompts(2), Sampling(2, 4, 1.0), version=0)


def test_likelihoods_come_in_order_and_no_engine_has_more_than_it_computes_at_once(world: World) -> None:
    _, measurements = measured(world, 2)
    at_once: list[int] = []
    world.happens = lambda: at_once.append(sum(each.name == "rollout-0" for each in world.pending))
    found = measurements.likelihoods(prompts(9), [texts(2)] * 9)
    assert [each.prompt_id for each in found] == [f"p{i}" for i in range(9)]
    assert max(at_once) == 2, "4 sequences are 2 prompts of 2"
    measurements.likelihoods(prompts(1), [texts(9)])  # more than that go to an idle engine all the same


@pytest.mark.parametrize("fault", ["silent", "dead", "engine_dead"])
def test_likelihoods_of_a_lost_actor_are_asked_of_others(world: World, fault: str) -> None:
    _, measurements = measured(world, 2)
    getattr(world, fault).add("rollout-1")
    start = world.now
    found = measurements.likelihoods(prompts(5), [texts(2)] * 5)
    assert [each.prompt_id for each in found] == ["p0", "p1", "p2", "p3", "p4"]
    assert world.now - start < 30
    lost = [prompt for name, prompt in world.asked if name == "rollout-1"]  # type: ignore[attr-defined]
    assert lost == ["p1", "p3"], "they take turns"


@pytest.mark.parametrize(("actors", "lost"), [(1, 10), (3, 12)])
def test_likelihoods_with_which_ten_actors_are_lost_are_given_up(world: World, actors: int, lost: int) -> None:
    """Also where several are lost at once."""
    _, measurements = measured(world, actors)
    world.dead.update(f"rollout-{i}" for i in range(20))
    world.dead_from = "generate"
    with pytest.raises(RuntimeError, match=f"{lost} rollout actors were lost while computing the likelihoods of"):
        measurements.likelihoods(prompts(actors), [texts(1)] * actors)


def test_a_refused_prompt_is_no_fault_of_the_actor(world: World) -> None:
    actors, _ = measured(world, 1)
    world.failing.add("rollout-0")

    def refused(name: str, error: RayError) -> None:
        raise ValueError(f"refused by {name}")

    generation = Generation(actors)
    measurements = Measurements(a_config().rollout, actors, generation, waiting(actors, generation), refused)
    with pytest.raises(ValueError, match="refused by rollout-0"):
        measurements.probe(prompts(1), Sampling(2, 4, 1.0), version=0)
    assert actors.serving


def test_a_probe_that_was_begun_is_not_waited_for(world: World) -> None:
    actors, measurements = measured(world, 3)
    begun = world.now
    measurements.begin_probe(["rollout-0", "rollout-2"], prompts(2), Sampling(2, 4, 1.0), version=0)
    assert (world.now, measurements.begun, measurements.take_probes()) == (begun, ["rollout-0", "rollout-2"], {})
    world.silent.add("rollout-2")
    actors.poll(3.0)
    assert measurements.begun == ["rollout-2"]
    (name, completions), *others = measurements.take_probes().items()
    assert (name, others) == ("rollout-0", [])
    assert [each.prompt_id for each in completions] == ["p0", "p1"]
    assert measurements.take_probes() == {}, "given out once"


@pytest.mark.parametrize("fault", ["silent", "dead", "engine_dead"])
def test_who_is_lost_with_a_probe_that_was_begun_is_forgotten(world: World, fault: str) -> None:
    actors, measurements = measured(world, 2)
    measurements.begin_probe(["rollout-0", "rollout-1"], prompts(2), Sampling(2, 4, 1.0), version=0)
    getattr(world, fault).add("rollout-1")
    start = world.now
    while measurements.begun:
        actors.poll(1.0)
    assert world.now - start <= 15 + 2
    assert actors.take_gone() == ["rollout-1"]
    assert measurements.take_probes().keys() == {"rollout-0"}


def test_a_broken_broadcast_costs_a_probe_that_was_begun_and_not_its_actor(world: World) -> None:
    """What an engine generated went with its weights."""
    actors, measurements = measured(world, 2)
    measurements.begin_probe(["rollout-0", "rollout-1"], prompts(2), Sampling(2, 4, 1.0), version=0)
    world.engine_dead.add("rollout-0")
    world.failing.add("rollout-1")
    actors.load_weights(WeightUpdate(1, (), "digest 1", lasting=False), world.failing.clear)
    assert actors.up.keys() == {"rollout-1"}
    assert (measurements.begun, measurements.take_probes()) == ([], {})
