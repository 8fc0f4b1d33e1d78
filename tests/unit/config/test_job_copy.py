"""Paths of a Ray job, whose working directory is a temporary copy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import require_copied, require_lasting


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy of a job, in which this process runs."""
    folder = tmp_path / "working_dir_files" / "_ray_pkg_1"
    (folder / "configs").mkdir(parents=True)
    monkeypatch.chdir(folder)
    a_job(monkeypatch, {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {}})
    return folder


def a_job(monkeypatch: pytest.MonkeyPatch, runtime_env: dict[str, Any]) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env, "metadata": {}}))


@pytest.mark.parametrize("given", ["runs/think", "./runs/think", "configs/../runs/think", "../runs/think"])
def test_results_would_go_with_the_copy(given: str, copy: Path) -> None:
    said = (
        f"run.dir={str(Path(given))!r} lies in this Ray job's temporary copy of --working-dir, where results would be "
        "lost; give an absolute path in a folder that all nodes share, e.g. run.dir=/mnt/shared/runs/think"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        require_lasting("run.dir", Path(given))


def test_an_absolute_path_may_lie_in_the_copy_as_well(copy: Path) -> None:
    with pytest.raises(ValueError, match=r"^--out='.*/_ray_pkg_1/runs/a' lies in .* e\.g\. --out=/mnt/shared/runs/a$"):
        require_lasting("--out", copy / "runs" / "a")


def test_data_that_ray_left_out_is_not_in_the_copy(copy: Path) -> None:
    require_copied("data.root", Path("configs"))
    said = r"^data\.root='data/OmniMedVQA' is not in this Ray job's .* e\.g\. data\.root=/mnt/shared/data/OmniMedVQA$"
    with pytest.raises(ValueError, match=said):
        require_copied("data.root", Path("data/OmniMedVQA"))


def test_other_folders_are_the_users_affair(copy: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "runs", Path("/nowhere")):
        require_lasting("run.dir", path)
        require_copied("data.root", path)


def test_without_a_job_or_a_copy_all_paths_are_good(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_job(monkeypatch, {"env_vars": {}})  # a job without --working-dir
    require_lasting("run.dir", Path("runs/think"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    require_lasting("run.dir", Path("runs/think"))
    require_copied("data.root", Path("data"))
