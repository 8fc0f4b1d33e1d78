"""The reward actors: who scores what, and what follows where one does not answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError

from medr1_ray.config import RewardSettings
from medr1_ray.pool import reward_actors as module
from medr1_ray.pool.reward_actors import RewardActors, python_path
from medr1_ray.rewards.actor import ScoreRequest
from medr1_ray.rewards.functions import RewardError
from medr1_ray.types import Completions, Rewards, Span
from tests.unit.pool.world import QUESTION, Method, RewardActor, World, a_config, install, reward_actors


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    return world


def completions(prompt_id: str) -> Completions:
    tokens = np.zeros(2, np.int32)
    return Completions(
        prompt_id, "rollout-0", tokens, np.zeros(2, np.float32), tokens, np.ones(2, np.int32), np.zeros(2, np.bool_),
        ("a", "b"), 1, Span("rollout-0", "rollout", 0, 1),
    )  # fmt: skip


class Scores:
    """What came of the groups that `actors` were given."""

    def __init__(self, world: World, actors: RewardActors) -> None:
        self._world, self._actors = world, actors
        self.right: list[str] = []
        self.wrong: list[Exception] = []

    def ask(self, *prompt_ids: str) -> None:
        for prompt_id in prompt_ids:
            self._actors.score(
                completions(prompt_id), QUESTION, judge_only=False, then=self._then, otherwise=self.wrong.append
            )
        self._actors.send()

    def _then(self, rewards: Rewards) -> None:
        self.right.append(rewards.prompt_id)

    def until(self, done: Callable[[], bool], limit: float = 500.0) -> None:
        end = self._world.now + limit
        while not done():
            assert self._world.now < end
            self._world.poll(1.0)
            self._actors.send()


def test_actors_take_turns(world: World) -> None:
    three = [RewardActor(world, name=f"reward-{i}") for i in range(3)]
    scores = Scores(world, reward_actors(world, a_config(), *three))
    scores.ask(*"abcdef")
    assert [len(each.scored) for each in three] == [2, 2, 2]
    scores.until(lambda: sorted(scores.right) == [*"abcdef"])


@pytest.mark.parametrize("fault", ["silent", "dead"])
def test_one_that_dies_or_hangs_is_replaced_and_its_groups_are_scored_once(world: World, fault: str) -> None:
    two = [RewardActor(world, name=f"reward-{i}") for i in range(2)]
    scores = Scores(world, reward_actors(world, a_config(), *two))
    getattr(world, fault).add("reward-0")
    scores.ask(*"abcd")
    scores.until(lambda: sorted(scores.right) == [*"abcd"])
    assert world.killed == ["reward-0"]
    assert "reward-2 replaces it" in world.said[-1]
    # Two groups of reward.timeout_seconds=10 with 5 s of grace, a margin, and the time to start, which it never showed.
    assert world.now < 2 * 15 + 10 + 20 + 5
    world.silent.clear()
    world.poll(1.0)
    assert len(scores.right) == 4, "the late answers of the one that was replaced are not counted again"
    assert scores.wrong == []


def test_a_group_that_three_actors_died_with_is_the_cause_and_those_behind_it_are_scored(world: World) -> None:
    dies_at: dict[str, float] = {}

    class Dying(RewardActor):
        def _score(self, requests: Sequence[ScoreRequest]) -> Any:
            name, seconds, answer = super()._score(requests)
            if "deadly" in [request.prompt_id for request in requests]:
                dies_at[self.name], seconds = world.now + 2.0, 4.0  # once it has started
            return name, seconds, answer

    def happens() -> None:
        world.dead.update(name for name, at in dies_at.items() if world.now >= at)

    world.happens = happens
    config = a_config()
    actors = RewardActors(config, world, world.said.append, lambda config, name: Dying(world, name=name))
    for name in actors._members:
        actors._on_up(name, None)  # as `wait_until_up` found
    scores = Scores(world, actors)
    scores.ask("deadly", "innocent", "also")
    scores.until(lambda: len(scores.wrong) == 1 and len(scores.right) == 2)
    assert sorted(scores.right) == ["also", "innocent"]
    (error,) = scores.wrong
    assert isinstance(error, RewardError)
    # The first had all three.
    assert "3 reward actors died or hung while they scored prompt 'deadly', most recently reward-3: " in str(error)
    assert error.completion == "a\n\nb"


@pytest.mark.parametrize("fault", ["silent", "dead"])
def test_actors_that_do_not_start_are_no_fault_of_a_group(world: World, fault: str) -> None:
    """Their node is full, or gone."""
    actors = reward_actors(world, a_config())
    actors._on_up("reward-0", None)
    scores = Scores(world, actors)
    getattr(world, fault).update(f"reward-{i}" for i in range(100))
    scores.ask("innocent")
    limit = r"^4 reward actors in a row ended before they had started, most recently reward-4: .*1 missing.*--resume$"
    with pytest.raises(RuntimeError, match=limit):
        scores.until(lambda: bool(scores.wrong))
    assert scores.wrong == []


def test_a_start_that_succeeds_ends_the_row(world: World) -> None:
    actors = reward_actors(world, a_config())
    scores = Scores(world, actors)
    for number in range(0, 12, 3):
        world.dead.update(f"reward-{number + i}" for i in range(3))
        world.poll(1.0)
        scores.ask("a")
        scores.until(lambda: scores.right == ["a"], 100.0)
        scores.right.clear()
    assert (scores.wrong, len(world.killed)) == ([], 12)


def test_an_error_of_a_reward_function_is_no_fault_of_the_actor(world: World) -> None:
    class Failing(RewardActor):
        def _score(self, requests: Sequence[ScoreRequest]) -> Any:
            errors = [RewardError(f"'mine' raised on {each.prompt_id}", "mine", "text") for each in requests]
            return self.name, 0.0, errors

    scores = Scores(world, reward_actors(world, a_config(), Failing(world)))
    scores.ask("a", "b")
    scores.until(lambda: len(scores.wrong) == 2)
    assert [str(error) for error in scores.wrong] == ["'mine' raised on a", "'mine' raised on b"]
    assert world.killed == []


def test_one_that_cannot_start_again_is_an_error_at_once(world: World) -> None:
    actors = reward_actors(world, a_config())
    scores, found = Scores(world, actors), list[Exception]()
    failed = RayActorError("reward-0", "ValueError: cannot import module 'mine'", actor_init_failed=True)
    actors.score(completions("a"), QUESTION, judge_only=False, then=scores._then, otherwise=found.append)
    actors.send()
    actors._on_error("reward-0", failed)
    assert str(found[0]) == "reward-0 did not start: ValueError: cannot import module 'mine'"


def test_the_drivers_python_path_is_the_actors_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join(["/mine", "here", "", "/theirs"])
    assert python_path({"PYTHONPATH": path}) == ("/mine", str(tmp_path / "here"), "/theirs")
    assert python_path({}) == ()


class Ping:
    """A reward actor that answers `ping` after the limit, with an error, or at once."""

    def __init__(self, name: str, *, late: bool = False, error: Exception | None = None) -> None:
        self.name, self.late, self.error = name, late, error
        self.ping = Method(lambda: self)


def wait_for(monkeypatch: pytest.MonkeyPatch, *actors: Ping, wanted: int = 0) -> list[float]:
    """Wait for the first `wanted` of these, or all; others replace them. Returns the limits that were given to Ray."""
    limits: list[float] = []

    def wait(references: list[Ping], num_returns: int, timeout: float) -> tuple[list[Ping], list[Ping]]:
        assert num_returns == len(references)
        limits.append(timeout)
        return [each for each in references if not each.late], [each for each in references if each.late]

    def get(reference: Ping) -> str:
        if reference.error:
            raise reference.error
        return reference.name

    monkeypatch.setattr(module.ray, "wait", wait)
    monkeypatch.setattr(module.ray, "get", get)
    monkeypatch.setattr(module, "describe_missing", lambda demand: f"{demand.count} of them need CPUs")
    monkeypatch.setattr(module.ray, "kill", lambda handle: None)
    waiting = list(actors)
    config = a_config().model_copy(update={"reward": RewardSettings(actors=wanted or len(actors))})
    RewardActors(config, World(), print, lambda config, name: waiting.pop(0)).wait_until_up()
    assert not waiting
    return limits


def test_reward_actors_that_are_up_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_for(monkeypatch, Ping("reward-0"), Ping("reward-1")) == [20]


def test_one_that_is_killed_as_it_starts_is_replaced_a_few_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, full = ActorDiedError(), OutOfMemoryError("OOM kill reason: 95 % of the memory is used\nadvice")
    others = (Ping("reward-2", error=full), Ping("reward-3"))
    limits = wait_for(monkeypatch, Ping("reward-0"), Ping("reward-1", error=killed), *others, wanted=2)
    assert limits == [20, 20, 20]
    assert "reward-2 is gone: Ray killed the actor because its node ran out of memory" in capsys.readouterr().out
    dying = [Ping(f"reward-{i}", error=killed) for i in range(4)]
    with pytest.raises(RuntimeError, match=r"^reward-3 did not start: The actor died"):
        wait_for(monkeypatch, *dying, wanted=1)


def test_one_that_ray_ends_for_want_of_memory_is_replaced(world: World) -> None:
    two = [RewardActor(world, name=f"reward-{i}") for i in range(2)]
    actors = reward_actors(world, a_config(), *two)
    scores = Scores(world, actors)
    scores.ask("a")
    actors._on_error("reward-0", OutOfMemoryError("OOM kill reason: 95 % of the memory is used"))
    scores.until(lambda: scores.right == ["a"])
    assert world.killed == ["reward-0"]


def test_a_reward_actor_that_fails_or_is_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    traceback = "Traceback (most recent call last):\n  ...\nValueError: unknown reward function"
    failed = RayActorError("reward-1", traceback, actor_init_failed=True)
    with pytest.raises(RuntimeError, match=r"^reward-1 did not start: ValueError: unknown reward function$"):
        wait_for(monkeypatch, Ping("reward-0"), Ping("reward-1", error=failed))
    late = r"^not up after cluster\.start_timeout_seconds=20: reward-0, reward-2; 3 of them need CPUs$"
    with pytest.raises(RuntimeError, match=late):
        wait_for(monkeypatch, Ping("reward-0", late=True), Ping("reward-1"), Ping("reward-2", late=True))


def test_what_an_actor_has_not_scored_in_a_call_goes_to_others(world: World) -> None:
    class Slow(RewardActor):
        """Has scored one group when the time of a call is over."""

        def _score(self, requests: Sequence[ScoreRequest]) -> Any:
            name, _, answer = super()._score(requests[:1])
            return name, 5.0, answer

    two = [Slow(world, name=f"reward-{i}") for i in range(2)]
    scores = Scores(world, reward_actors(world, a_config(), *two))
    scores.ask(*"abcdefgh")
    start = world.now
    scores.until(lambda: len(scores.right) == 8)
    assert sorted(scores.right) == [*"abcdefgh"]
    assert [len(each.scored) for each in two] == [4, 4]
    assert world.now - start < 4 * 5 + 5


def test_an_actor_that_stands_still_is_noticed_however_many_groups_it_has(world: World) -> None:
    actors = reward_actors(world, a_config())
    actors._on_up("reward-0", None)
    scores = Scores(world, actors)
    world.silent.add("reward-0")
    scores.ask(*(f"group {i}" for i in range(100)))
    scores.until(lambda: world.killed == ["reward-0"], 1 + 10 + 5 + 10 + 2)
    scores.until(lambda: len(scores.right) == 100)
