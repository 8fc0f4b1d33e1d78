"""Each missing prerequisite is told with its remedy."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from medr1_ray.preflight import missing


@pytest.fixture(autouse=True)
def _a_machine_with_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(sys, "version_info", (3, 11, 4))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "c++" else None)
    monkeypatch.delenv("CXX", raising=False)


def test_a_machine_with_everything_lacks_nothing() -> None:
    assert list(missing()) == []


@pytest.mark.parametrize(("version", "told"), [((3, 10, 9), 1), ((3, 11, 0), 0), ((3, 12, 9), 0), ((3, 13, 0), 1)])
def test_python_3_11_and_3_12_will_do(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], told: int
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    problems = list(missing())
    assert len(problems) == told
    assert all(f"Python 3.11 or 3.12 is needed, not 3.{version[1]}" in problem for problem in problems)


def no_ensurepip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def no_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").unlink()


def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def another_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "clang++")


@pytest.mark.parametrize(
    ("take_away", "says"),
    [
        (no_ensurepip, "apt install python3-venv"),
        (no_header, "apt install python3-dev"),
        (no_compiler, "'c++' is not on PATH (Debian: apt install g++"),
        (another_compiler, "'clang++' is not on PATH"),
    ],
)
def test_what_is_missing_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    take_away: Callable[[pytest.MonkeyPatch, Path], None],
    says: str,
) -> None:
    take_away(monkeypatch, tmp_path)
    (problem,) = missing()
    assert says in problem
