"""Checks that a run fits the nodes, before anything waits for a placement group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.cluster.resources import Demand, demands, labels_match, unplaceable
from medr1_ray.config import Config

A_NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
SPOT = {"ray.io/market-type": "spot"}


def a_config(**settings: Any) -> Config:
    data = {"format": "phantoms", "root": Path("data")}
    return Config.model_validate({"run": {"dir": Path("run")}, "data": data, "train": {"steps": 1}, **settings})


def test_demands_carry_counts_resources_and_labels() -> None:
    config = a_config(
        rollout={"actors": 3, "gpus_per_actor": 2, "max_actors": 5},
        learner={"world_size": 2, "gpus_per_rank": 1},
        cluster={"labels": {"rollout": SPOT}},
    )
    learner, rollout, reward = demands(config)
    assert (learner.count, learner.resources, learner.labels) == (2, {"CPU": 1.0, "GPU": 1.0}, {})
    assert (rollout.count, rollout.resources, rollout.labels) == (3, {"CPU": 1.0, "GPU": 2.0}, SPOT)
    assert reward.resources == {"CPU": 0.1}
    assert demands(config, 5)[1].count == 5


def test_what_fits_may_be_possible() -> None:
    wanted = [Demand("rollout actor", 4, 1, 1, {}), Demand("reward actor", 1, 0.1, 0, {})]
    assert unplaceable(wanted, [(A_NODE, {}), (A_NODE, {})]) is None


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            [Demand("rollout actor", 1, 1, 4, {})],
            "1 x (1 CPU, 4 GPU) for its rollout actors, but the 2 nodes have room for 0",
        ),
        (
            [Demand("rollout actor", 5, 1, 1, {})],
            "5 x (1 CPU, 1 GPU) for its rollout actors, but the 2 nodes have room for 4",
        ),
        (
            [
                Demand("rollout actor", 3, 1, 1, {}),
                Demand("learner rank", 2, 1, 1, {}),
                Demand("reward actor", 1, 0.1, 0, {}),
            ],
            "the run needs 5 GPUs (3 rollout actors: 3, 2 learner ranks: 2), but the 2 nodes have 4",
        ),
        (
            [Demand("rollout actor", 3, 1, 1, SPOT)],
            "on nodes labelled ray.io/market-type=spot for its rollout actors, but the 2 nodes have room for 2 of them "
            "(1 nodes have the labels)",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(wanted: list[Demand], message: str) -> None:
    problem = unplaceable(wanted, [(A_NODE, SPOT), (A_NODE, {})])
    assert problem is not None
    assert message in problem


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ("spot", True),
        ("!spot", False),
        ("in(spot, on-demand)", True),
        ("in(on-demand, spot)", True),
        ("!in(a,b)", True),
        ("on-demand", False),
    ],
)
def test_label_selectors_mean_what_they_mean_to_ray(selector: str, fits: bool) -> None:
    assert labels_match({"ray.io/market-type": selector}, SPOT) is fits
    assert labels_match({"no such label": selector}, SPOT) is selector.startswith("!")
