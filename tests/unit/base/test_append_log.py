"""Append-only files after an interrupted write, and on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from medr1_ray.base import append_log as module
from medr1_ray.base.append_log import AppendLog, GrowingFile
from tests.faults.files import full


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "log.jsonl"
    AppendLog(file).append([{"id": "é"}, {"id": "b"}])
    with file.open("a") as log:
        log.write('{"id": "c"')
    again = AppendLog(file)
    assert again.rows == [{"id": "é"}, {"id": "b"}]
    again.append([{"id": "c"}])
    assert AppendLog(file).rows == again.rows == [{"id": "é"}, {"id": "b"}, {"id": "c"}]


def test_rows_are_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, synced, sync = AppendLog(tmp_path / "log.jsonl"), list[bytes](), os.fsync

    def record(file: int) -> None:
        synced.append((tmp_path / "log.jsonl").read_bytes())
        sync(file)

    monkeypatch.setattr(os, "fsync", record)
    log.append({"id": name} for name in "ab")
    assert synced == [b'{"id": "a"}\n{"id": "b"}\n'], "whole, and once for all rows"


class Disk:
    """A file that takes only so many bytes more, as on a full disk; writes a part of what does not fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1_000_000
        opened = Path.open

        def open_file(path: Path, *arguments: object, **named: object) -> object:
            return _Writes(self, opened(path, *arguments, **named))  # type: ignore[call-overload]

        monkeypatch.setattr(module.Path, "open", open_file)


class _Writes:
    def __init__(self, disk: Disk, file: object) -> None:
        self._disk, self._file = disk, file

    def __enter__(self) -> _Writes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # type: ignore[attr-defined]

    def fileno(self) -> int:
        return int(self._file.fileno())  # type: ignore[attr-defined]

    def write(self, data: memoryview) -> int:
        if not self._disk.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = int(self._file.write(data[: self._disk.free]))  # type: ignore[attr-defined]
        self._disk.free -= written
        return written


def test_what_finds_no_room_is_written_when_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    file = GrowingFile(tmp_path / "metrics.jsonl", said.append)
    disk = Disk(monkeypatch)
    file.append(["one\n"])
    disk.free = 3
    for line in ("two\n", "three\n"):
        file.append([line])
        disk.free = 0
        assert file.path.stat().st_size == 4, "no torn line"
    disk.free = 100
    file.append(["four\n"])
    monkeypatch.undo()
    assert file.path.read_text() == "one\ntwo\nthree\nfour\n"
    first, second = said
    assert first.startswith(f"NOT WRITTEN: {file.path}: No space left on device. The run goes on")
    assert second == f"{file.path}: 3 lines that had been kept are written"
    file.close()
    assert len(said) == 2


def test_lines_wait_while_a_disk_is_full(disk: Path) -> None:
    said: list[str] = []
    file, line = GrowingFile(disk / "metrics.jsonl", said.append), "x" * 5000 + "\n"
    file.append(["one\n"])
    with full(disk):
        file.append([line])
    file.append(["three\n"])
    assert file.path.read_text() == f"one\n{line}three\n"
    assert [text.split(":")[0] for text in said] == ["NOT WRITTEN", str(file.path)]


def test_what_never_finds_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    file = GrowingFile(tmp_path / "spans.jsonl", said.append)
    Disk(monkeypatch).free = 0
    file.append(["one\n", "two\n"])
    file.close()
    assert said[-1] == f"LOST: 2 lines of {file.path}, for which there was no room"


def test_another_failure_is_an_error(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "metrics.jsonl", print)
    file.path.mkdir()
    with pytest.raises(IsADirectoryError):
        file.append(["one\n"])


def test_a_line_that_a_dead_process_left_is_cut(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("one\ntw")
    GrowingFile(tmp_path / "metrics.jsonl", print).append(["three\n"])
    assert (tmp_path / "metrics.jsonl").read_text() == "one\nthree\n"
