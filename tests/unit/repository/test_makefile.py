"""`make` reports missing prerequisites before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

TOOLS = ("sh", "sed", "touch", "mkdir", "env", "test", "echo", "rm")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    clone = tmp_path / "clone"
    (clone / "medr1_ray").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "medr1_ray/preflight.py"):
        shutil.copy(REPOSITORY / name, clone / name)
    return clone


def make(clone: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in `clone` with a PATH of only `path`, to which a few tools are linked."""
    for tool in TOOLS:
        found = shutil.which(tool)
        if found and not (path / tool).exists():
            (path / tool).symlink_to(found)
    command = [shutil.which("make") or "make", *arguments]
    return subprocess.run(
        command, cwd=clone, env={"PATH": str(path)}, capture_output=True, text=True, check=False, timeout=300
    )


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    return tools


@pytest.mark.parametrize("target", ["train", "test", "lint"])
def test_a_missing_compiler_is_told_before_installing(clone: Path, tools: Path, target: str) -> None:
    done = make(clone, tools, target, f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert "error: a C++ compiler is needed" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_wrong_python_is_told_before_installing(clone: Path, tools: Path) -> None:
    executable(tools / "c++", "exit 0")
    executable(tools / "python3", f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 4); '
        'import runpy; runpy.run_module(\'$2\', run_name=\'__main__\')"')
    done = make(clone, tools, "train")
    assert done.returncode != 0
    assert "error: Python 3.11 or 3.12 is needed, not 3.10" in done.stderr
    assert not (clone / ".venv").exists()


def test_the_check_runs_under_a_python_that_has_imported_nothing_yet() -> None:
    """Debian's Python is like that; others import the standard library's `types` before ours could shadow it."""
    command = [sys.executable, "-S", "-m", "medr1_ray.preflight"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_python_at_all_is_told(clone: Path, tools: Path) -> None:
    executable(tools / "c++", "exit 0")
    done = make(clone, tools, "train")
    assert done.returncode != 0
    assert "no python3 on PATH" in done.stderr


def test_an_installation_runs_once_until_its_inputs_change(clone: Path, tools: Path) -> None:
    executable(tools / "g++", "exit 0")
    log = clone / "log"
    executable(
        tools / "python",
        f'echo "$@" >> {log}\n'
        'test "$1" != -m -o "$2" != venv && exit 0\n'
        'mkdir -p "$3/bin"; cp_to="$3/bin/python"\n'
        'echo "#!/bin/sh" > "$cp_to"; '
        f'echo \'echo "$CXX" "$@" >> {log}\' >> "$cp_to"; {shutil.which("chmod")} 755 "$cp_to"',
    )
    for _ in range(2):
        done = make(clone, tools, "train", "PYTHON=python", "ARGS=train.steps=3")
        assert done.returncode == 0, done.stderr
    lines = [line.removeprefix(f"{tools}/g++ ") for line in log.read_text().splitlines()]
    assert lines[0] == "-m medr1_ray.preflight"
    assert lines[1] == f"-m venv {clone}/.venv"
    assert [line.split()[:3] for line in lines[2:4]] == [["-m", "pip", "install"]] * 2
    assert "--no-deps" in lines[2]
    assert lines[2].endswith("+cpu")
    assert "--editable .[cpu,dev]" in lines[3]
    assert "--constraint constraints.txt" in lines[3]
    train = "-m medr1_ray.train --config configs/phantom_cpu.yaml train.steps=3"
    assert lines[4:] == [train, train]

    later = (clone / ".venv/.installed").stat().st_mtime + 1
    os.utime(clone / "constraints.txt", (later, later))
    make(clone, tools, "train", "PYTHON=python")
    assert len(log.read_text().splitlines()) == 6 + 5
