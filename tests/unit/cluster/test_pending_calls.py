"""Pending calls: whose turn it is, and what is said of a failed one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from medr1_ray.base.deadline import Limit
from medr1_ray.cluster import pending_calls
from medr1_ray.cluster.pending_calls import PendingCalls, describe_error, is_node_loss, is_own_failure, remote

# Ray 2.60's wording, with its advice shortened.
KILLED_FOR_MEMORY = """The actor died unexpectedly before finishing this task.
2 worker(s) were killed due to the node running low on memory.
OOM kill reason: Memory usage 24029642752B exceeded threshold of 24012259328B (95.0% of 25276063744B limit)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io. To adjust the kill threshold,
set the environment variable `RAY_memory_usage_threshold` when starting Ray."""


def test_an_actor_killed_for_memory_is_said_to_be_without_a_page_of_advice() -> None:
    said = describe_error(RayActorError("", KILLED_FOR_MEMORY))
    assert said.startswith("Ray killed the actor because its node ran out of memory: Memory usage 24029642752B")
    assert "Refer to" not in said


def test_of_a_traceback_the_exception_is_said() -> None:
    error = RayTaskError("generate", "Traceback (most recent call last):\n  ...\nValueError: too long", ValueError("x"))
    assert describe_error(error) == "ValueError: too long"
    text = "Traceback:\n  ...\nmedr1_ray.rollout.actor.EngineLostError: a.b: died"
    ours = RayTaskError("generate", text, ValueError())
    assert describe_error(ours) == "EngineLostError: a.b: died"


def test_an_actors_own_error_is_told_from_the_end_of_its_process() -> None:
    task = RayTaskError("generate", "ValueError: x", ValueError("x"))
    assert is_own_failure(task)
    assert not is_own_failure(ActorDiedError()), "its node may have been taken away"
    assert is_own_failure(RayActorError("a", "ValueError: x", actor_init_failed=True)), "its __init__ raised"
    assert not is_own_failure(RayError("the network"))


def test_the_end_of_a_node_is_told_from_that_of_a_process() -> None:
    assert is_node_loss(RayActorError("a", "The actor died because its node has died. Node Id: 1"))
    assert is_node_loss(RayActorError("a", "gone", preempted=True))
    assert not is_node_loss(ActorDiedError())
    assert not is_node_loss(RayTaskError("generate", "its node has died", ValueError("x")))


class World:
    """References and their results or errors; `wait` returns as Ray's does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: dict[str, Any] = {}
        self.waited: list[tuple[int, float]] = []
        self.slept: list[float] = []
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr(pending_calls.time, "sleep", self.slept.append)

    def wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert 1 <= num_returns <= len(references), "Ray refuses more"
        self.waited.append((num_returns, timeout))
        ready = [reference for reference in references if reference in self.done][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: str) -> Any:
        answer = self.done[reference]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_poll_answers_all_that_is_ready_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world, calls, heard = World(monkeypatch), PendingCalls(), list[tuple[str, Any]]()

    def hear(what: str) -> Callable[[Any], None]:
        return lambda answer: heard.append((what, answer))

    calls.poll(0.25)
    assert (world.slept, world.waited) == ([0.25], []), "nothing to wait for: the driver does not spin"
    failure = RayError("gone")
    for name in ("a", "b", "c"):
        calls.add(name, hear(f"{name} answered"), hear(f"{name} failed"))
    calls.poll(0.25)
    assert heard == []
    assert world.waited == [(1, 0.25)], "it waits for the first, no longer than it may"
    world.done |= {"a": 1, "c": failure}
    calls.poll(0.25)
    assert heard == [("a answered", 1), ("c failed", failure)]
    assert world.waited[1:] == [(1, 0.25), (3, 0.01)], "the others have a moment"
    calls.poll(0)
    assert world.waited[3:] == [(1, 0)], "a poll that must not wait does not"
    world.done["b"] = None
    calls.poll(0.25)
    assert heard[2:] == [("b answered", None)], "those that were answered are not again"


def test_a_call_that_is_not_answered_in_time_fails_once_and_its_late_answer_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, now, heard = World(monkeypatch), [0.0], list[Any]()
    calls = PendingCalls(lambda: now[0])
    limit = Limit(10.0, "cluster.sync_timeout_seconds")
    calls.add("slow", heard.append, lambda error: heard.append(describe_error(error)), "`sleep()`", limit)
    calls.add("without a limit", heard.append, heard.append)
    now[0] = 10.0
    calls.poll(0.25)
    assert heard == []
    now[0] = 10.5
    calls.poll(0.25)
    calls.poll(0.25)
    assert heard == ["`sleep()` was not answered within cluster.sync_timeout_seconds=10"]
    world.done["slow"] = "late"
    calls.poll(0.25)
    assert heard[1:] == ["late"]


def test_an_answer_that_is_there_at_the_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver may have been busy for longer than any limit: that is not the actor's fault."""
    world, now, heard = World(monkeypatch), [0.0], list[Any]()
    calls = PendingCalls(lambda: now[0])
    calls.add("a", heard.append, lambda error: pytest.fail("it has answered"), "a call", Limit(10.0, "key"))
    world.done["a"], now[0] = 1, 1000.0
    calls.poll(0)
    assert heard == [1]


def test_an_error_of_a_callback_is_no_failure_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world, calls = World(monkeypatch), PendingCalls()

    def then(answer: Any) -> None:
        raise RayError("of the callback itself")

    calls.add("a", then, lambda error: pytest.fail("the call succeeded"))
    world.done["a"] = 1
    with pytest.raises(RayError, match="of the callback itself"):
        calls.poll(0)


def test_a_method_is_called_by_the_name_that_it_has_in_its_class() -> None:
    class Actor:
        def generate(self, prompt: str, *, seed: int) -> str:
            return f"{prompt} {seed}"

    class Method:
        def remote(self, *args: Any, **kwargs: Any) -> Any:
            return args, kwargs

    class Handle:
        generate = Method()

    assert remote(Handle(), Actor.generate, "p", seed=3) == (("p",), {"seed": 3})
