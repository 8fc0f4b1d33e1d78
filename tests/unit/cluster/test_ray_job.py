"""What a Ray job is told about `ray job stop`."""

from __future__ import annotations

import pytest

from medr1_ray.cluster.ray_job import about_stopping


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_STOP_WAIT_TIME_S"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_outside_of_a_job() -> None:
    assert about_stopping() is None


def test_how_long_it_leaves_and_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    said = about_stopping()
    assert said is not None
    assert "kills this job 3 s after" in said
    assert said.endswith("""--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}'""")


def test_nothing_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "300")
    assert about_stopping() is None
