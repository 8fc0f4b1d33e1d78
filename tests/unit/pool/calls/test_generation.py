"""Many groups in a call of an actor, and what follows where the call fails."""

from __future__ import annotations

import pytest
from ray.exceptions import RayError

from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.generation import Generation
from medr1_ray.types import Sampling
from tests.unit.pool.world import QUESTION, Encoder, World, a_config, install, update


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    return world


class Case:
    """Two actors that are asked for groups; `done` and `failed` are (actor, prompt id)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.actors = RolloutActors(a_config(actors=2), world, world.said.append, world.launch, lambda: world.now)
        self.actors.wait_until_up()
        self.actors.load_weights(update(0))
        self.generation = Generation(self.actors)
        self.done: list[tuple[str, str]] = []
        self.failed: list[tuple[str, str]] = []

    def ask(self, actor: str, *prompt_ids: str) -> None:
        for prompt_id in prompt_ids:
            self.generation.ask(
                actor,
                f"train/{prompt_id}",
                Encoder().encode(QUESTION, prompt_id),
                Sampling(4, 8, 1.0),
                then=lambda completions: self.done.append((completions.actor, completions.prompt_id)),
                otherwise=lambda name, error, prompt_id=prompt_id: self._on_error(name, error, prompt_id),  # type: ignore[misc]
            )

    def _on_error(self, name: str, error: RayError, prompt_id: str) -> None:
        self.failed.append((name, prompt_id))
        self.actors.on_error(name, error)

    def poll(self, seconds: float = 1.0) -> None:
        self.actors.poll(seconds)
        self.generation.send()

    def calls(self) -> list[str]:
        return [each.name for each in self.world.pending if each.generates]


@pytest.fixture
def case(world: World) -> Case:
    return Case(world)


def test_what_was_asked_goes_in_one_call_and_comes_as_it_is_done(case: Case) -> None:
    case.ask("rollout-0", "a", "b")
    case.ask("rollout-1", "c")
    assert case.calls() == [], "nothing is sent before `send`"
    case.generation.send()
    case.generation.send()
    assert case.calls() == ["rollout-0", "rollout-1"]
    case.poll()
    case.ask("rollout-0", "d")
    case.poll()
    assert sorted(case.done) == [("rollout-0", "a"), ("rollout-0", "b"), ("rollout-1", "c")]
    assert case.calls() == ["rollout-0"], "d is under way, and its call waits; rollout-1 has nothing"
    case.poll(2.0)
    assert case.done[-1] == ("rollout-0", "d")
    case.poll()
    assert case.calls() == []


def test_a_new_call_takes_the_place_of_the_one_that_waits(case: Case) -> None:
    case.ask("rollout-0", "a")
    case.generation.send()
    case.world.group_seconds = 5.0
    case.ask("rollout-0", "b")
    case.poll(0.0)
    assert case.calls() == ["rollout-0"] * 2
    case.poll(0.0)
    assert (case.calls(), case.done) == (["rollout-0"], []), "the first has been answered with nothing"
    case.poll(2.0)
    assert case.done == [("rollout-0", "a")]
    case.poll(5.0)
    assert case.done[1:] == [("rollout-0", "b")]


def test_a_call_that_fails_ends_the_groups_that_it_or_an_earlier_one_took_there(case: Case) -> None:
    case.ask("rollout-0", "a", "b")
    case.ask("rollout-1", "c")
    case.generation.send()
    case.world.dead.add("rollout-0")
    case.poll()
    assert case.failed == [("rollout-0", "a"), ("rollout-0", "b")]
    assert not case.actors.has("rollout-0")
    case.ask("rollout-0", "d")  # by somebody who has not heard of it
    case.poll()
    case.poll()
    assert (case.done, case.calls()) == ([("rollout-1", "c")], [])


def test_an_actor_that_answers_nothing_in_time_is_lost_and_its_late_answers_are_told(case: Case) -> None:
    case.ask("rollout-0", "a")
    case.generation.send()
    case.world.silent.add("rollout-0")
    while not case.failed:
        case.poll()
        assert case.world.now < 100
    assert case.failed == [("rollout-0", "a")]
    assert not case.actors.has("rollout-0")
    case.world.silent.clear()
    case.poll()
    assert case.done == [("rollout-0", "a")], "for whoever counts what comes late"


def test_an_answer_that_an_error_of_a_later_call_has_overtaken_is_passed_over(case: Case) -> None:
    """Ray may bring an error, which is small, before an answer that another node has to send."""
    case.ask("rollout-0", "a")
    case.generation.send()
    (first,) = case.generation._waiting["rollout-0"]
    sent = dict(case.generation._sent["rollout-0"])
    case._on_error = lambda name, error, prompt_id: case.failed.append((name, prompt_id))  # type: ignore[method-assign]
    case.generation._on_error(first + 1, "rollout-0", RayError())
    assert case.failed == [("rollout-0", "a")]
    running = case.actors._actors["rollout-0"].handle.running
    ((_, request_id, completions),) = running
    running.clear()
    case.ask("rollout-0", "a")  # once more, by a later call
    case.generation.send()
    case.generation._on_answer("rollout-0", first, [(request_id, completions)])
    assert (case.done, list(sent)) == ([], [request_id])
    case.poll(2.0)
    assert case.done == [("rollout-0", "a")], "the answer of the call that has it"
