"""A built wheel works without the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repository import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy, so that setuptools neither writes to the repository nor picks up stale files from it.
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "medr1_ray", source / "medr1_ray", ignore=ignored)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "medr1_ray"
    expected = {
        str(path.relative_to(REPOSITORY))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in inside if name.startswith("medr1_ray/")} == expected
    assert {"medr1_ray/py.typed", "medr1_ray/tiny/model/config.json"} <= inside
    assert any(name.endswith("LICENSE") for name in inside)
    assert wheel.stat().st_size < 12 * 2**20


def test_the_wheel_runs_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    settings = "run: {dir: r}\ndata: {format: phantoms, root: d}\ntrain: {steps: 2}\n"
    (tmp_path / "own.yaml").write_text(settings)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import medr1_ray; print(medr1_ray.__file__); "
        "from medr1_ray.train import main; sys.exit(main(['--config', 'own.yaml', '--dry-run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert "Qwen2VLForConditionalGeneration" in done.stdout


def test_its_metadata_name_the_extras_and_the_entry_point(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "medr1_ray.torchvision_shim:repair_imports" in texts["entry_points.txt"]
    requirements = [line for line in texts["METADATA"].splitlines() if line.startswith("Requires-Dist: vllm")]
    pins = {requirement.split("==")[1].split(";")[0].strip() for requirement in requirements}
    assert len(requirements) == 2
    assert len(pins) == 1
