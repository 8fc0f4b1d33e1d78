"""What a session starts from: the accounts of a resumed run, and what is said of the actors."""

from __future__ import annotations

import pytest

from medr1_ray.data.stream import StreamState
from medr1_ray.records.checkpoints import RunState
from medr1_ray.records.summary import Totals
from medr1_ray.run import startup as module
from medr1_ray.run.startup import _actors, _leave_cluster, _ledger
from tests.unit.pool.world import a_config


def test_a_resumed_run_goes_on_with_its_totals_and_nothing_in_flight() -> None:
    state = RunState(
        step=3,
        stream=StreamState(seed=1, digest="d"),
        unused_prompts=("1.1:q",),  # to be issued again, and counted then
        groups_used=24,
        groups_zero_variance=5,
        groups_dropped={"stale": 2, "zero_variance": 1},
        groups_reissued=6,
        answers_late=7,
        totals=Totals(96),
        config_digest="c",
        steps_skipped=0,
        metric_lines=3,
    )
    counts = _ledger(state).counts()
    assert (counts.issued, counts.used, counts.zero_variance, counts.in_flight) == (27, 24, 5, 0)
    assert (counts.dropped, counts.reissued, counts.late) == ({"stale": 2, "zero_variance": 1}, 6, 7)
    assert _ledger(None).counts().issued == 0


def test_actors_are_said_in_words() -> None:
    assert _actors(a_config(actors=3)) == "1 learner rank, 3 rollout actors, 1 reward actor"


@pytest.mark.parametrize(("most", "released"), [(2, 0), (3, 1)])
def test_nodes_that_were_asked_for_are_released_by_a_run_that_could_ask(
    most: int, released: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(module, "release_nodes", lambda: calls.append("release"))
    monkeypatch.setattr(module.ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(module.ray, "is_initialized", lambda: True)
    config = a_config(actors=2, max_actors=most)
    _leave_cluster(config)
    assert calls == ["release"] * released + ["shutdown"]
    calls.clear()
    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    _leave_cluster(config)
    assert calls == ["shutdown"], "before Ray was there, there is nobody to tell"
