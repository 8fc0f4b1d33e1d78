"""What follows from the nodes that Ray drains."""

from __future__ import annotations

import math
import threading

import pytest

from medr1_ray.base.stopping import asked_to_stop, finishing, heeding_signals, who_asked
from medr1_ray.cluster import leaving_nodes
from medr1_ray.cluster.leaving_nodes import LeavingNodes

RANKS = [("learner-0", "a"), ("learner-1", "b"), ("learner-2", "b")]


def test_nodes_of_the_learner_are_told_by_the_names_of_its_ranks_in_the_same_words_until_others_leave() -> None:
    draining: dict[str, float] = {}
    nodes = LeavingNodes("driver's", RANKS, lambda: draining)
    said = []
    for now in ({}, {"c": 5.0}, {"b": 90.4}, {"b": 60.0}, {"a": 99.0, "b": 30.0}, {"a": 69.0, "b": -1.0}, {"a": -1.0}):
        draining = now
        nodes.look()
        said.append(nodes.of_learner())
    of_b = "Ray drains the node of learner-1, learner-2 (90 s left)"
    assert said == [
        "",
        "",
        of_b,
        of_b,
        "Ray drains the node of learner-0, learner-1, learner-2 (30 s left)",
        "Ray drains the node of learner-0 (69 s left)",
        "",
    ]


def test_a_node_without_a_deadline_may_stay_for_days() -> None:
    nodes = LeavingNodes("driver's", RANKS, lambda: {"a": math.inf})
    nodes.look()
    assert nodes.of_learner() == ""


def test_the_drivers_node_ends_the_command_as_sigterm_does() -> None:
    nodes = LeavingNodes("a", RANKS, lambda: {"a": 30.0})
    with heeding_signals(), finishing("an update under way"):
        nodes.look()
        nodes.look()  # the second asks no second time, which would cut the update
        assert asked_to_stop()
        assert who_asked() == "Ray, which drains the driver's node (30 s left)"
    assert nodes.of_learner() == "", "its ranks there end with the driver"


def test_a_command_that_waits_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving_nodes, "_LOOK_SECONDS", 0.01)
    answers = iter([RuntimeError("the head does not answer")])

    def ask() -> dict[str, float]:
        for error in answers:
            raise error
        return {"a": 30.0}

    with heeding_signals(), pytest.raises(KeyboardInterrupt), LeavingNodes("a", RANKS, ask).watched():
        threading.Event().wait(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "leaving nodes"]
