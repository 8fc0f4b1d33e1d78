"""One process at a time, and the next one after it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medr1_ray.records.file_lock import FileLock


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    first = FileLock(tmp_path / "lock")
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "):
        FileLock(tmp_path / "lock")
    first.release()
    FileLock(tmp_path / "lock").release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from medr1_ray.records.file_lock import FileLock\n"
    script += "lock = FileLock(Path(sys.argv[1])); os._exit(0)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "lock")], check=True)
    assert (tmp_path / "lock").read_text().startswith("process ")
    FileLock(tmp_path / "lock").release()
