"""A training as a user types it, for tests and scripts that kill it; its local cluster and actors are its children."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.repository import REPOSITORY


class Run:
    """`medr1_ray.train` with these arguments, writing to `folder`; what it prints is appended to `folder`.log."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        self.output = folder.with_suffix(".log")
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        self._start = self.output.stat().st_size if self.output.exists() else 0
        command = [sys.executable, "-m", "medr1_ray.train", *arguments]
        command += [f"run.dir={folder}", f"data.root={folder.parent / 'phantoms'}"]
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, env={**environment, "PYTHONUNBUFFERED": "1"}, stdout=output, stderr=output
            )

    def said(self) -> str:
        """What this process has printed."""
        return self.output.read_bytes()[self._start :].decode(errors="replace")

    def until(self, what: Callable[[], object], seconds: float = 600.0) -> bool:
        """Wait for it; False where the run ended before. Raises SystemExit after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if what():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise SystemExit(f"{self.output}: nothing for {seconds:g} s:\n{self.said()[-3000:]}")
            time.sleep(0.005)
        return False

    def finish(self) -> None:
        """Wait for its end. Raises SystemExit where it failed."""
        if self.process.wait():
            raise SystemExit(f"{self.output} ended with {self.process.returncode}:\n{self.said()[-3000:]}")

    def kill(self) -> None:
        """End it with all of its processes, as a power cut would; nothing where it has ended."""
        for process in (*self.children(), self.process):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def children(self) -> list[psutil.Process]:
        """All processes below it, as long as it runs itself."""
        # Asked first, since another process may have the number of one that has ended.
        if self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def titled(self, *titles: str) -> list[psutil.Process]:
        """Its processes whose title begins with one of these, e.g. `ray::LearnerActor.update`."""
        found = []
        for child in self.children():
            with suppress(psutil.Error):
                if " ".join(child.cmdline()).startswith(titles):
                    found.append(child)
        return found

    def saves(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.folder / "checkpoints").glob(".checkpoint-*.partial/model*"))
