"""A log that is cut off."""

from pathlib import Path

from medr1_ray.base.append_log import AppendLog


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "log.jsonl"
    AppendLog(file).append([{"id": "é"}, {"id": "b"}])
    with file.open("a") as log:
        log.write('{"id": "c"')
    again = AppendLog(file)
    assert again.rows == [{"id": "é"}, {"id": "b"}]
    again.append([{"id": "c"}])
    assert AppendLog(file).rows == again.rows == [{"id": "é"}, {"id": "b"}, {"id": "c"}]
