"""Every benchmark says what it is, without being started."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.repository import REPOSITORY

NAMES = sorted(path.stem for path in (REPOSITORY / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of runpy, about a module that another test has imported
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules
@pytest.mark.parametrize("name", NAMES)
def test_help_needs_the_repository_alone(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("transformers_accuracy", ["/nope"], "/nope is not the directory of a finished run: it has no config.yaml"),
        ("churn", ["--against", "/nope"], "--against /nope is not the summary.json of a finished run"),
        ("matrix", ["--config", "/nope"], "--config /nope cannot be read as YAML (No such file or directory)"),
        ("matrix", ["--config", "configs"], "--config configs cannot be read as YAML (Is a directory)"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_path_is_one_line(
    name: str,
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {says}")
