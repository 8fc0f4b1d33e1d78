"""Damaged JSON is named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.base.json_files import read_mapping, read_rows


def test_rows_are_read_without_a_torn_last_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == []
    file.write_bytes('{"id": "é\u2028"}\n{"id": "b", "n": 1}\n{"id"'.encode())
    assert read_rows(file, ("id",)) == [{"id": "é\u2028"}, {"id": "b", "n": 1}]


@pytest.mark.parametrize(
    "line",
    [b"garbage", b'{"id": "c"', b"", b"[]", b"5", b'{"other": 1}', b"\xff\xfe\x00", b"\0" * 40, b"[" * 100_000],
)
def test_a_damaged_line_is_named_and_never_skipped(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": "a"}\n' + line + b'\n{"id": "b"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: .* with id; mend this line, or remove it") as error:
        read_rows(file, ("id",))
    assert len(str(error.value)) < 500 + len(str(file))


@pytest.mark.parametrize(("content", "says"), [(b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "mapping")])
def test_a_damaged_mapping_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"settings\.json: .*{says}.*; delete it"):
        read_mapping(file, "delete it")
    file.write_text('{"a": 1}')
    assert read_mapping(file, "delete it", ("a",)) == {"a": 1}
    with pytest.raises(ValueError, match=r"settings\.json: has no 'b'; delete it"):
        read_mapping(file, "delete it", ("a", "b"))
