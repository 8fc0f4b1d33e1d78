"""A line every ten seconds while something takes long, so that a silent command is one that hangs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

EVERY_SECONDS = 10.0


@contextmanager
def still(doing: str) -> Iterator[None]:
    """Say on standard error that `doing` goes on, e.g. `reading the table`, while the body takes long."""
    started = time.monotonic()

    def say() -> None:
        print(f"still {doing}, for {time.monotonic() - started:.0f} s now", file=sys.stderr, flush=True)

    with repeating(say):
        yield


@contextmanager
def repeating(show: Callable[[], object], every_seconds: float | None = None) -> Iterator[None]:
    """Call `show` every ten seconds, from a thread, while the body runs: to refresh a progress bar, say."""
    ended = Event()

    def run() -> None:
        while not ended.wait(every_seconds or EVERY_SECONDS):
            show()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
