"""SharedActors that are lent to one run after the other: which runs may have them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from medr1_ray.config import Config
from medr1_ray.pool import shared_actors as module
from medr1_ray.pool.shared_actors import SharedActors, open_engines
from tests.unit.pool.world import a_config


def engines_for(config: Config, monkeypatch: pytest.MonkeyPatch) -> SharedActors:
    monkeypatch.setattr(module, "RolloutActors", lambda *arguments, **named: None)
    monkeypatch.setattr(module, "RewardActors", lambda *arguments: None)
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
