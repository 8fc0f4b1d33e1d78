"""Files behind a URL: what is whole, what is refused, and how long is waited."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from medr1_ray.base.manifest import store, write_manifest
from medr1_ray.run.storage.objects import Storage, StorageError
from tests.faults.storage import URL, FaultyFiles, a_config, files

__all__ = ["files"]


def a_storage(tmp_path: Path, url: str = URL, timeout: float = 600.0) -> Storage:
    storage = Storage.of(a_config(tmp_path / "run", url, timeout))
    assert storage is not None
    return storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two files with a manifest."""
    made = tmp_path / "folder"
    (made / "inner").mkdir(parents=True)
    (made / "a").write_bytes(b"a" * 100)
    (made / "inner" / "b").write_bytes(b"b" * 10)
    write_manifest(made, [store(made, "a"), store(made, "inner/b")])
    return made


@pytest.mark.parametrize("kind", ["faulty", "file"])
def test_a_folder_goes_there_and_comes_back(tmp_path: Path, folder: Path, files: type[FaultyFiles], kind: str) -> None:
    url = {"faulty": URL, "file": f"file://{tmp_path}/there"}[kind]
    storage = a_storage(tmp_path, url)
    storage.rehearse()
    assert storage.sizes("") == {}
    assert storage.read("x/a") is None
    storage.upload(folder, "x")
    assert {name: size for name, size in storage.sizes("x").items() if "manifest" not in name} == {
        "x/a": 100,
        "x/inner/b": 10,
    }
    assert storage.download("x", tmp_path / "back") is None
    for name in ("a", "inner/b", "manifest.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    storage.delete_folder("x")
    storage.delete_folder("x")
    assert storage.sizes("") == {}


def test_a_folder_without_a_file_or_a_byte_is_damaged(tmp_path: Path, folder: Path, files: type[FaultyFiles]) -> None:
    storage = a_storage(tmp_path)
    storage.upload(folder, "x")
    assert storage.download("y", tmp_path / "1") == "manifest.json is missing"
    storage.write("x/a", b"b" + b"a" * 99)
    assert storage.download("x", tmp_path / "2") == "a has other bytes than were written"
    storage.write("x/a", b"a" * 99)
    assert storage.download("x", tmp_path / "3") == "a has 99 bytes and was written with 100"
    storage.delete("x/a")
    assert storage.download("x", tmp_path / "4") == "a is missing"
    storage.write("x/manifest.json", b'{"files": {"../../etc": {"bytes": 1, "sha256": ""}}}')
    assert storage.download("x", tmp_path / "5") == "manifest.json names ../../etc, which is outside of the folder"
    assert not (tmp_path / "5").exists()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("fail", "uploading inner/b failed: OSError: connection reset"),
        ("refuse", "uploading inner/b failed: PermissionError: Access Denied"),
        ("hang", r"uploading inner/b timed out after 1 s \(run.storage_timeout_seconds\)"),
        ("truncate", "x/a has 50 bytes there and 100 here"),
    ],
)
def test_an_upload_that_fails_is_one_line_and_no_folder(
    tmp_path: Path, folder: Path, files: type[FaultyFiles], fault: str, says: str
) -> None:
    storage = a_storage(tmp_path, timeout=1.0 if fault == "hang" else 600.0)
    files.set(fault)
    with pytest.raises(StorageError, match=rf"^run\.storage='{URL}': {says}"):
        storage.upload(folder, "x")
    files.set()
    assert storage.read("x/manifest.json") is None


def test_a_manifest_that_is_cut_off_is_told(tmp_path: Path, folder: Path, files: type[FaultyFiles]) -> None:
    files.set("truncate", at=2)
    with pytest.raises(StorageError, match=r"x/manifest.json has \d+ bytes there and \d+ here"):
        a_storage(tmp_path).upload(folder, "x")


@pytest.mark.parametrize("fault", ["fail", "refuse", "hang", "truncate"])
def test_a_storage_that_cannot_be_written_is_found_out(tmp_path: Path, files: type[FaultyFiles], fault: str) -> None:
    files.set(fault)
    with pytest.raises(ValueError, match=rf"^run\.storage='{URL}': .*look at the bucket's name, its permissions"):
        a_storage(tmp_path, timeout=1.0 if fault == "hang" else 600.0).rehearse()


def test_a_protocol_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(registry.known_implementations, "s3", {"class": "nowhere.S3", "err": "Install s3fs"})
    registry._registry.pop("s3", None)
    with pytest.raises(ValueError, match=r"^run.storage='s3://b/a' .* \(Install s3fs\); pip install '\.\[s3\]'$"):
        a_storage(tmp_path, "s3://b/a")
    with pytest.raises(ValueError, match=r"^run.storage='nothing://b/a' cannot be used \(.*nothing.*\); install its"):
        a_storage(tmp_path, "nothing://b/a")


@pytest.mark.parametrize("url", ["file://{}/run", "file://{}/run/checkpoints", "file://{}"])
def test_a_storage_in_the_run_or_around_it_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="lie one in the other; give a folder on another disk"):
        a_storage(tmp_path, url.format(tmp_path))
    a_storage(tmp_path, f"file://{tmp_path}/runs")


def test_a_run_without_storage_has_none(tmp_path: Path) -> None:
    assert Storage.of(a_config(tmp_path, None)) is None
