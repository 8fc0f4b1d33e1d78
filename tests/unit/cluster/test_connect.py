"""Which cluster a run joins, or starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError

import medr1_ray
from medr1_ray.cluster import connect as module
from medr1_ray.cluster.connect import connect
from medr1_ray.config import Config


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of `ray.init`, and `checked` after each check that the run fits."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **settings: calls.append(settings))
    monkeypatch.setattr(module, "require_possible", lambda config: calls.append({"checked": config}))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


def a_config(address: str | None = None, **rollout: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": Path("run")},
            "data": {"format": "phantoms", "root": Path("data")},
            "train": {"steps": 1},
            "cluster": {"address": address},
            "rollout": rollout,
            "learner": {"world_size": 2},
        }
    )


def test_the_address_of_the_settings_comes_before_that_of_the_job(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "of-the-job:6379")
    monkeypatch.setattr(module, "require_reachable", lambda config: None)
    for config, address in ((a_config("given:6379"), "given:6379"), (a_config(), "of-the-job:6379")):
        connect(config)
        assert started[-2]["address"] == address
        assert "num_cpus" not in started[-2], "a cluster has the CPUs that it has"
        assert started[-1] == {"checked": config}


def test_without_an_address_a_cluster_of_this_machine_fits_the_largest_run(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = a_config(actors=2, max_actors=5, cpus_per_actor=1.5)
    # Two ranks and five actors: 2 * 1 + 5 * 1.5 + 0.1 (rewards) = 9.6, more than the cores, which take turns.
    for cores, cpus in ((4, 10), (64, 64), (None, 10)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        connect(config)
        assert (started[-2]["address"], started[-2]["num_cpus"]) == ("local", cpus)
        assert started[-1] == {"checked": config}
    path = started[-2]["runtime_env"]["env_vars"]["PYTHONPATH"]
    assert Path(path) == Path(medr1_ray.__file__).parents[1], "workers import this copy of the package"


def test_an_address_at_which_something_listens_is_tried(started: list[dict[str, Any]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        connect(a_config(address))
    assert started[0]["address"] == address
    connect(a_config("auto"))
    assert started[2]["address"] == "auto", "Ray looks for it"


def test_an_address_that_cannot_be_joined_is_not_tried(started: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"^cluster\.address='http://head:8265' is not where"):
        connect(a_config("http://head:8265"))
    assert started == []


@pytest.mark.parametrize("error", [ConnectionError("no cluster\nmore"), AuthenticationError("no cluster\nmore")])
def test_a_cluster_that_refuses_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match=r"^cluster\.address='auto' cannot be joined \(no cluster.*\); .* as here$"):
        connect(a_config("auto"))
