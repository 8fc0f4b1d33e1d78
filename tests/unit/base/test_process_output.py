"""What a process prints is in its file, and the cause of a failure is found there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medr1_ray.base.process_output import last_error, write_output_to

SCRIPT = """
import subprocess, sys
from pathlib import Path
from medr1_ray.base.process_output import last_error, write_output_to
path = Path(sys.argv[1])
begin = write_output_to(path, sys.argv[2])
subprocess.run([sys.executable, "-c", sys.argv[3]])
print("found:", last_error(path, begin), flush=True)
"""


def test_each_start_is_marked_and_its_own_error_found(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    for name, code in (("first", "raise ValueError('no room')"), ("second", "print('fine')")):
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(log), name, code], capture_output=True, check=True)
        assert done.stdout == done.stderr == b""
    text = log.read_text()
    assert [line.split(",")[0] for line in text.splitlines() if line.startswith("===")] == ["=== first", "=== second"]
    assert "found: ValueError: no room\n" in text
    assert text.endswith("fine\nfound: None\n"), "an error of an earlier start is not this one's"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("all is well", None),
        # vLLM's prefix, and what it raises afterwards.
        (
            "(EngineCore pid=12) ERROR 11-27 12:00:00 [core.py:9] ValueError: No available memory for the cache.\n"
            "Traceback (most recent call last):\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n",
            "ValueError: No available memory for the cache.",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory.\nmore", "torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_the_last_error_that_is_a_cause_is_found(tmp_path: Path, text: str, found: str | None) -> None:
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == found


def test_without_a_file_there_is_no_error(tmp_path: Path) -> None:
    assert last_error(tmp_path / "absent") is None
    assert callable(write_output_to)
