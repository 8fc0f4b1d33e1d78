"""How long actors were at work."""

from __future__ import annotations

from medr1_ray.records.busy_time import BusyTime
from medr1_ray.types import Span


def test_overlapping_requests_count_once() -> None:
    """Three requests from 0 to 4 s and one from 6 to 7 s: 5 s; the learner's two phases: 3 s."""
    busy = BusyTime().add(
        [
            Span("rollout-0", "rollout", 6.0, 7.0),
            Span("rollout-0", "rollout", 0.0, 3.0),
            Span("rollout-0", "rollout", 1.0, 2.0),
            Span("rollout-0", "rollout", 2.0, 4.0),
            Span("learner-0", "pack", 0.0, 1.0),
            Span("learner-0", "forward_backward", 1.0, 3.0),
            Span("driver", "rollout", 0.0, 7.0),
        ]
    )
    assert busy == {"rollout-0": 5.0, "learner-0": 3.0}


def test_a_request_over_two_steps_counts_once() -> None:
    time = BusyTime()
    assert time.add([Span("rollout-0", "rollout", 0.0, 3.0)]) == {"rollout-0": 3.0}
    assert time.add([Span("rollout-0", "rollout", 1.0, 5.0)]) == {"rollout-0": 2.0}
    assert time.add([Span("rollout-0", "rollout", 2.0, 4.0)]) == {}


def test_evaluations_are_no_time_of_a_step() -> None:
    spans = [
        Span("driver", "evaluation", 2.0, 6.0),
        Span("rollout-0", "rollout", 1.0, 3.0),
        Span("rollout-0", "rollout", 3.0, 5.5),
        Span("rollout-0", "rollout", 5.0, 7.0),
    ]
    assert BusyTime().add(spans) == {"rollout-0": 2.0}
