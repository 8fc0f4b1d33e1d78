"""The process in which a lane of the matrix trains."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.repository import REPOSITORY


def is_running(process: int) -> bool:
    """Return False for a process that has ended, even if its parent has not yet collected its exit status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_lane_ends_with_a_matrix_that_was_killed() -> None:
    script = (
        "import multiprocessing, os, time; from concurrent.futures import ProcessPoolExecutor; "
        "from benchmarks.helpers.matrix.lane import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    print(ProcessPoolExecutor(1, spawn, initializer=end_with_parent).submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as matrix_process:
        assert matrix_process.stdout is not None
        lane = int(matrix_process.stdout.readline())
        assert is_running(lane)
        matrix_process.kill()
    deadline = time.monotonic() + 300.0
    while is_running(lane) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(lane)
