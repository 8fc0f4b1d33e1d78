"""Files survive an interruption of who writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medr1_ray.base.atomic_files import cut_torn_line, naming, publish, whole_lines, write_text


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")
    with publish(path) as partial:
        partial.write_text("ne")
        assert path.read_text() == "old"
        # On the same file system, and not among the files that readers look for.
        assert partial.parent == path.parent
        assert list(tmp_path.glob("*.json")) == [path]
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")
    with pytest.raises(error), publish(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(error), publish(path):
        raise error  # before anything was written


def test_the_content_is_on_the_disk_before_the_file_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("sync") or sync(file))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("rename") or replace(*names))
    write_text(tmp_path / "a", "ä")
    assert calls == ["sync", "rename"]
    assert (tmp_path / "a").read_bytes() == "ä".encode()


def test_lines_end_at_line_feeds_alone_and_a_torn_one_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert whole_lines(path) == []
    cut_torn_line(path)
    assert not path.exists()
    path.write_bytes("one\u2028still one\r\n\ntwo: ü\nto".encode() + "ü".encode()[:1])
    assert whole_lines(path) == ["one\u2028still one\r".encode(), b"", "two: ü".encode()]
    cut_torn_line(path)
    assert path.read_bytes() == "one\u2028still one\r\n\ntwo: ü\n".encode()
    cut_torn_line(path)
    assert path.read_bytes().endswith("two: ü\n".encode()), "a whole line stays"
    path.write_text("torn")
    cut_torn_line(path)
    assert path.read_bytes() == b""


def test_a_full_disk_is_named_by_the_file_that_was_written(tmp_path: Path) -> None:
    full = Path("/dev/full")
    with pytest.raises(OSError, match="/dev/full"), naming(full), full.open("w") as file:
        file.write("x")
    with pytest.raises(OSError, match=r"a\.json"), publish(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError, match="other"), naming(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
