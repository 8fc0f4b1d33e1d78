"""Whether the cluster to join answers, and which setting says where it is."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from medr1_ray.cluster.address import cluster_address, require_reachable
from tests.unit.cluster.test_connect import a_config


@pytest.fixture(autouse=True)
def outside_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def deaf_address() -> Iterator[str]:
    """One at which nobody listens as long as the test has it."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{deaf.getsockname()[1]}"


def test_the_settings_come_before_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_address(a_config()) == ("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_ADDRESS", "job:6379")
    assert cluster_address(a_config()) == ("RAY_ADDRESS", "job:6379")
    assert cluster_address(a_config("given:6379")) == ("cluster.address", "given:6379")


def test_an_address_at_which_nothing_listens_is_named_with_what_to_do(
    deaf_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = rf"'{deaf_address}' does not answer \(.*refused.*\); start Ray there .* or unset"
    with pytest.raises(ValueError, match=rf"^cluster\.address={said} cluster\.address to run on this machine alone$"):
        require_reachable(a_config(deaf_address))
    monkeypatch.setenv("RAY_ADDRESS", deaf_address)
    with pytest.raises(ValueError, match=rf"^RAY_ADDRESS={said} RAY_ADDRESS to run on this machine alone$"):
        require_reachable(a_config())


def test_one_that_answers_and_one_that_ray_looks_for_itself_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_reachable(a_config(f"127.0.0.1:{server.getsockname()[1]}"))
    require_reachable(a_config("auto"))
    require_reachable(a_config())


@pytest.mark.parametrize("address", ["http://head:8265", "https://head", "ray://head:10001"])
def test_the_address_for_submissions_is_not_that_of_the_cluster(address: str) -> None:
    with pytest.raises(ValueError, match=rf"^cluster\.address='{address}' is not where .* HOST:6379, .* job submit"):
        require_reachable(a_config(address))
