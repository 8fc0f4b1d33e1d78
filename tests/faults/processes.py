"""Processes that tests start, stop and end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 900.0
"""Seconds that tests wait for what takes seconds on an idle machine: it guards against what hangs, and nothing else."""


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does nothing while the body runs, so that what it works at is not finished before."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def engine_process(logs: Path, actor: str) -> int:
    """The process id of the engine that an actor started last, from the actor's log."""
    return int(re.findall(r"EngineCore pid=(\d+)", (logs / f"{actor}.log").read_text())[-1])


def end(process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Have a process end in its own way; one that takes too long is killed."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
