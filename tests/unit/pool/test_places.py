"""Places: whose are asked for, and when the autoscaler is asked for nodes."""

from __future__ import annotations

from typing import Any

import pytest

from medr1_ray.pool import places as module
from medr1_ray.pool.places import Places
from tests.unit.pool.world import a_config


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the cluster was asked."""
    said: list[Any] = []
    monkeypatch.setattr(module, "ask_for_place", lambda name, demand, strategy: said.append((name, strategy)))
    monkeypatch.setattr(module, "request_nodes", lambda config, wanted: said.append(wanted))
    monkeypatch.setattr(module, "release_nodes", lambda: said.append("release"))
    monkeypatch.setattr(module, "describe_missing", lambda demand: f"{demand.count} missing")
    return said


def test_an_actor_gets_a_place_of_its_own_or_the_one_that_is_given(said: list[Any]) -> None:
    Places(a_config()).ask("rollout-0")
    assert said == [("rollout-0", "STRICT_PACK")]
    places: Any = Places(a_config(), lambda name: f"the place of {name}")  # type: ignore[arg-type, return-value]
    assert places.ask("rollout-1") == "the place of rollout-1"
    assert places.missing(3) == "3 missing"


def test_nodes_are_requested_when_the_number_changes_and_only_where_it_can(said: list[Any]) -> None:
    elastic, fixed = Places(a_config(actors=1, max_actors=4)), Places(a_config(actors=4))
    for wanted in (0, 2, 2, 3, 0, 0):
        elastic.request_nodes(wanted)
        fixed.request_nodes(wanted)
    assert said == [2, 3, "release"]
