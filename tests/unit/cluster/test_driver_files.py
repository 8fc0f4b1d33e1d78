"""The files by which a node shows that it sees the run's folders."""

from __future__ import annotations

from pathlib import Path

from medr1_ray.cluster.driver_files import driver_files
from medr1_ray.config import Config


def a_config(run: Path, model: str) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": run},
            "model": {"path": model},
            "data": {"format": "phantoms", "root": "data"},
            "train": {"steps": 1},
        }
    )


def test_a_run_has_a_mark_in_its_directory_and_its_models_settings(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    mark, settings = driver_files(a_config(tmp_path / "run", str(model)))
    assert (mark.key, mark.path) == ("run.dir", tmp_path / "run" / "logs" / ".driver")
    assert (settings.key, settings.path) == ("model.path", model / "config.json")
    mark.require()
    settings.require()


def test_each_driver_has_a_mark_of_its_own(tmp_path: Path) -> None:
    first, second = (driver_files(a_config(tmp_path, "tiny"))[0] for _ in range(2))
    assert first.digest != second.digest


def test_the_tiny_model_is_where_the_package_is(tmp_path: Path) -> None:
    assert [file.key for file in driver_files(a_config(tmp_path, "tiny"))] == ["run.dir"]
