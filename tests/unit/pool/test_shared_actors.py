"""SharedActors that are lent to one run after the other: which runs may have them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ray.exceptions import RayActorError

from medr1_ray.config import Config
from medr1_ray.pool import shared_actors as module
from medr1_ray.pool.shared_actors import SharedActors, open_engines, wait_until_up
from tests.unit.pool.world import Method, a_config


def engines_for(config: Config, monkeypatch: pytest.MonkeyPatch) -> SharedActors:
    monkeypatch.setattr(module, "RolloutActors", lambda *arguments, **named: None)
    monkeypatch.setattr(module, "start_reward_actors", lambda config: {})
    return SharedActors(config, (), print)


def test_a_run_may_differ_in_what_its_learner_does(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = engines_for(a_config({"steps": 1, "group_size": 4}), monkeypatch)
    engines.require_fit(a_config({"steps": 9, "group_size": 8, "seed": 3}))


@pytest.mark.parametrize(
    ("said", "settings"),
    [
        ("rollout.max_tokens=9, but", {"rollout": {"max_tokens": 9}}),
        ("mode='think', but", {"mode": "think"}),
        ("model.path='elsewhere', but", {"model": {"path": "elsewhere"}}),
        ("reward.actors=2, but", {"reward": {"actors": 2}}),
    ],
)
def test_a_run_that_needs_other_engines_is_refused(
    said: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = a_config()
    engines = engines_for(base, monkeypatch)
    other = base.model_copy(update={key: _changed(getattr(base, key), value) for key, value in settings.items()})
    with pytest.raises(ValueError, match=re.escape(said)):
        engines.require_fit(other)


def _changed(section: Any, value: Any) -> Any:
    return section.model_copy(update=value) if isinstance(value, dict) else value


def test_engines_on_a_learners_gpus_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base = a_config()
    colocated = base.model_copy(update={"cluster": base.cluster.model_copy(update={"colocated": True})})
    with pytest.raises(ValueError, match="colocated"):
        engines_for(base, monkeypatch).require_fit(colocated)


class Ping:
    """A reward actor that answers `ping` after the limit, with an error, or at once."""

    def __init__(self, name: str, *, late: bool = False, error: Exception | None = None) -> None:
        self.name, self.late, self.error = name, late, error
        self.ping = Method(lambda: self)


def wait_for(monkeypatch: pytest.MonkeyPatch, *actors: Ping) -> list[float]:
    """Wait for these; returns the limits that were given to Ray."""
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
    wait_until_up({actor.name: actor for actor in actors}, a_config())
    return limits


def test_reward_actors_that_are_up_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_for(monkeypatch, Ping("reward-0"), Ping("reward-1")) == [20]


def test_a_reward_actor_that_fails_or_is_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    traceback = "Traceback (most recent call last):\n  ...\nValueError: unknown reward function"
    failed = RayActorError("reward-1", traceback, actor_init_failed=True)
    with pytest.raises(RuntimeError, match=r"^reward-1 did not start: ValueError: unknown reward function$"):
        wait_for(monkeypatch, Ping("reward-0"), Ping("reward-1", error=failed))
    late = r"^not up after cluster\.start_timeout_seconds=20: reward-0, reward-2; 1 of them need CPUs$"
    with pytest.raises(RuntimeError, match=late):
        wait_for(monkeypatch, Ping("reward-0", late=True), Ping("reward-1"), Ping("reward-2", late=True))


def test_engines_that_are_opened_end_with_their_cluster_even_where_one_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    class Actors:
        def __init__(self, config: Config, files: Any, say: Any) -> None:
            calls.append(f"ask with {files}")

        def wait_until_up(self) -> None:
            calls.append("wait")
            if "broken" in calls:
                raise RuntimeError("an actor did not start")

    monkeypatch.setattr(module, "connect", lambda config: calls.append("connect"))
    monkeypatch.setattr(module, "driver_files", lambda config: "files")
    monkeypatch.setattr(module, "SharedActors", Actors)
    monkeypatch.setattr(module.ray, "shutdown", lambda: calls.append("shutdown"))
    with open_engines(a_config()):
        calls.append("use")
    assert calls == ["connect", "ask with files", "wait", "use", "shutdown"]
    calls[:] = ["broken"]
    with pytest.raises(RuntimeError, match="did not start"), open_engines(a_config()):
        pass
    assert calls == ["broken", "connect", "ask with files", "wait", "shutdown"]
