"""A folder's manifest says whether every file is as it was written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from medr1_ray.base.manifest import find_damage, store, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    for name in ("one", "below/two"):
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, [store(tmp_path, name) for name in ("one", "below/two")])
    return tmp_path


def test_files_as_they_were_written(folder: Path) -> None:
    assert find_damage(folder) is None
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files["below/two"] == {"bytes": 9, "sha256": hashlib.sha256(b"below/two").hexdigest()}
    (folder / "a file of somebody's").touch()
    assert find_damage(folder) is None


def test_a_file_is_for_those_whom_its_folder_is_for(folder: Path) -> None:
    folder.chmod(0o750)
    (folder / "one").chmod(0o600)
    store(folder, "one")
    assert (folder / "one").stat().st_mode & 0o777 == 0o640


def test_what_is_wrong_is_named(folder: Path) -> None:
    (folder / "one").write_bytes(b"eno")
    assert find_damage(folder) == "one has other bytes than were written"
    os.truncate(folder / "below" / "two", 4)
    # Found without reading all of the others.
    assert find_damage(folder) == "below/two has 4 bytes and was written with 9"
    (folder / "below" / "two").unlink()
    assert find_damage(folder) == "below/two is missing"


def test_a_pipe_is_no_file(folder: Path) -> None:
    """Reading it would wait for ever."""
    (folder / "one").unlink()
    os.mkfifo(folder / "one")
    assert find_damage(folder) == "one is missing"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"files": 1}', '{"files": {"one": {}}}', '{"files": {"one": {"bytes": "x"}}}', "\0"]
)
def test_a_manifest_that_cannot_be_read_is_damage(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert find_damage(folder) == "manifest.json cannot be read"


@pytest.mark.parametrize("name", ["/etc/passwd", "../one", "below/../../one"])
def test_nothing_outside_of_the_folder_is_read(folder: Path, name: str) -> None:
    (folder / "manifest.json").write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": ""}}}))
    assert find_damage(folder) == f"manifest.json names {name}, which is outside of the folder"
