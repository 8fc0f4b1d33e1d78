"""`AppendLog` after an interrupted write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medr1_ray.base.append_log import AppendLog


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
