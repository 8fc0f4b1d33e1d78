"""The documented commands of the tiny model need no more than a Ray head of two CPUs."""

from __future__ import annotations

import pytest

from medr1_ray.cluster.resources import demands, unplaceable
from medr1_ray.config.loading import load_config
from tests.repository import REPOSITORY

CPU_CONFIGS = sorted((REPOSITORY / "configs").glob("*_cpu*.yaml"))


@pytest.mark.parametrize("path", CPU_CONFIGS, ids=lambda path: path.stem)
def test_all_actors_fit_a_node_of_two_cpus(path) -> None:
    config = load_config([path])
    assert unplaceable(demands(config), [({"CPU": 2.0}, {})]) is None


def test_there_are_such_configurations() -> None:
    assert {"phantom_cpu", "phantom_cpu_async", "phantom_cpu_zero3", "realmini_cpu"} <= {p.stem for p in CPU_CONFIGS}
