"""A storage in memory that fails on request, and runs that are kept in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medr1_ray.base.manifest import NotSavedError, StoredFile, store
from medr1_ray.config import Config
from medr1_ray.config.loading import write_config
from medr1_ray.data.stream import StreamState
from medr1_ray.records.checkpoints import Checkpoints, RunState
from medr1_ray.records.summary import Totals
from medr1_ray.run.storage.objects import Storage

URL = "faulty://bucket/runs/a"


class Killed(BaseException):
    """The process dies here."""


class FaultyFiles(MemoryFileSystem):
    """Counts what changes it. `fault` says what happens to the change of that number, from 0, or to all of them."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    changes: ClassVar[int] = 0
    at: ClassVar[int | None] = None  # None: every change
    fault: ClassVar[str] = ""
    go_on: ClassVar[Event] = Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("faulty://", "memory://")))

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self._change(rpath, Path(lpath).read_bytes())

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        self._change(path, value)

    def rm_file(self, path: str) -> None:
        if self._due() == "kill":
            raise Killed
        super().rm_file(path)

    def _change(self, path: str, content: bytes) -> None:
        fault = self._due()
        if fault == "refuse":
            raise PermissionError("Access Denied")
        if fault == "hang":
            self.go_on.wait()
        half = content[: len(content) // 2]
        super().pipe_file(path, half if fault in ("kill", "fail", "truncate") else content)
        if fault == "kill":
            raise Killed
        if fault == "fail":
            raise OSError("connection reset")

    def _due(self) -> str:
        cls = type(self)
        cls.changes += 1
        return cls.fault if cls.at is None or cls.at == cls.changes - 1 else ""

    @classmethod
    def set(cls, fault: str = "", at: int | None = None) -> None:
        cls.fault, cls.at, cls.changes = fault, at, 0

    @classmethod
    def content(cls) -> dict[str, bytes]:
        """All files, by their name below the URL."""
        return {name.removeprefix("/bucket/runs/a/"): bytes(file.getvalue()) for name, file in cls.store.items()}

    @classmethod
    def put_back(cls, content: dict[str, bytes]) -> None:
        cls.store.clear()
        for name, each in content.items():
            MemoryFileSystem.pipe_file(cls(), f"/bucket/runs/a/{name}", each)


@pytest.fixture
def files() -> Iterator[type[FaultyFiles]]:
    """An empty storage without faults at `URL`."""
    fsspec.register_implementation("faulty", FaultyFiles, clobber=True)
    FaultyFiles.store.clear()
    FaultyFiles.go_on = Event()
    FaultyFiles.set()
    yield FaultyFiles
    FaultyFiles.go_on.set()


def a_config(folder: Path, url: str | None = URL, timeout: float = 600.0, **sections: Any) -> Config:
    """Settings of a run in this folder."""
    settings: dict[str, Any] = {
        "run": {"dir": folder, "storage": url, "storage_timeout_seconds": timeout},
        "data": {"format": "phantoms", "root": "p"},
        "train": {"steps": 40},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return Config.model_validate(settings)


def a_state(step: int, skipped: int = 0) -> RunState:
    return RunState(step, StreamState(0, "d"), (), 0, 0, {}, 0, 0, Totals(), "c", skipped, step)


def save(config: Config, step: int, checkpoints: Checkpoints | None = None, skipped: int = 0) -> Path:
    """Leave in run.dir what a run leaves that has done this many steps and saved them; returns the checkpoint."""
    folder = config.run.dir
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    (folder / "evaluations" / "before.json").write_text('{"accuracy": 0.5}')
    (folder / "rollouts").mkdir(exist_ok=True)
    (folder / "rollouts" / "step-000001.jsonl").write_text("{}\n")
    write_config(config, folder / "config.yaml")
    lines = [json.dumps({"step": each}) + "\n" for each in range(1, step + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))

    def write(partial: Path) -> list[StoredFile]:
        (partial / "learner_state").mkdir()
        names = ("model.safetensors", "learner_state/0.safetensors")
        for name in names:
            (partial / name).write_bytes(f"{name} of step {step} ".encode() * 10)
        return [store(partial, name) for name in names]

    checkpoints = checkpoints or Checkpoints(folder / "checkpoints", config.run.keep_checkpoints)
    return publish(checkpoints, a_state(step, skipped), write)


def publish(checkpoints: Checkpoints, state: RunState, write: Callable[[Path], Iterable[StoredFile]]) -> Path:
    """As a run and its ranks do it; `write` fills a folder, and returns what it wrote."""
    checkpoint = checkpoints.begin(state)
    try:
        return checkpoints.publish(checkpoint, write(checkpoint.folder))
    except OSError as error:
        raise NotSavedError(f"a rank cannot write {checkpoint.folder}: {error}") from None
    finally:
        checkpoints.give_up(checkpoint)


@pytest.fixture
def storage(tmp_path: Path, files: type[FaultyFiles]) -> Storage:
    made = Storage.of(a_config(tmp_path / "run"))
    assert made is not None
    return made
