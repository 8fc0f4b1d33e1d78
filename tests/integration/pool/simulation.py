"""A simulated run as a process of its own, and what it says."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.faults.processes import PATIENCE

SIMULATION = Path(__file__).with_name("simulated_run.py")
SLOTS = {"engine": {"max_num_seqs": 16}}  # 4 groups of 4 at once
STEP = {"prompts_per_step": 16, "group_size": 4}
# So long that no healthy actor of a busy machine exceeds them.
DEADLINES = {"placement_timeout_seconds": 300, "start_timeout_seconds": 300, "sync_timeout_seconds": 300}


class SimulatedRun:
    """A run on the cluster at this address, started by the command `inside` if one is given.

    The other arguments are those of `simulated_run.run`.
    """

    def __init__(
        self,
        address: str,
        *,
        cluster: dict[str, Any] | None = None,
        inside: tuple[str, ...] = (),
        **arguments: Any,
    ) -> None:
        settings = {**arguments.pop("settings"), "cluster": {"address": address, **DEADLINES, **(cluster or {})}}
        command = [*inside, sys.executable, str(SIMULATION), json.dumps({"settings": settings, **arguments})]
        self.lines: list[dict[str, Any]] = []
        self._queue: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line)
        self._queue.put("")

    def until(self, event: str, timeout: float = PATIENCE, **values: Any) -> dict[str, Any]:
        """The next line of this event with these values; fails when the run ends before."""
        end = time.monotonic() + timeout
        while True:
            try:
                text = self._queue.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                last = next((line for line in reversed(self.lines) if line["event"] == event), None)
                raise AssertionError(f"no {event} {values} within {timeout:g} s; the last: {last}") from None
            if not text.startswith("{"):
                assert text, f"the run ended without {event} {values}: {self.said()}"
                continue
            line = json.loads(text)
            self.lines.append(line)
            if line["event"] == event and all(line[key] == value for key, value in values.items()):
                return line
            assert line["event"] != "error", line["text"]

    def tell(self, command: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        return self.until("end")

    def books_add_up(self) -> bool:
        """Whether every group that was issued was used, dropped or in flight, after each step."""
        return all(
            ledger["issued"] == ledger["used"] + sum(ledger["dropped"].values()) + ledger["in_flight"]
            for ledger in (line["ledger"] for line in self.steps())
        )

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == "step"]

    def said(self) -> list[str]:
        return [line["text"] for line in self.lines if line["event"] in ("say", "error")]
