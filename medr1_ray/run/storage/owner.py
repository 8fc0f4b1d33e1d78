"""Which process writes to a storage: a second one is refused while the first gives signs of life.

Object stores have no lock that fsspec knows of. Two that start in the same seconds may both take it; the one that finds
the other's name at its next sign of life uploads nothing more.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from threading import Event, Thread

from medr1_ray.run.storage.objects import Storage, StorageError

OWNER_FILE = "owner.json"
SIGN_SECONDS = 15.0
DEAD_SECONDS = 60.0
"""Without a sign of life for so long a process counts as dead."""
_SURELY_DEAD_SECONDS = 3600.0  # by two machines' clocks, which may differ
_JOIN_SECONDS = 5.0


@dataclass(frozen=True)
class Sign:
    """A sign of life: of which run of which process, and when, in seconds since 1970 by that machine's clock."""

    run: str
    host: str
    pid: int
    time: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def require_unowned(storage: Storage, say: Callable[[str], None], wait: Callable[[float], object] = time.sleep) -> None:
    """Return once nobody else writes there; a process that was killed without a word is waited for, `DEAD_SECONDS`.

    Raises:
        ValueError: a process gives signs of life.
    """
    first = _read(storage)
    if first is None:
        return
    if time.time() - first.time < _SURELY_DEAD_SECONDS:
        say(f"{storage} was in use by {first}; it is taken over if that gives no sign of life for {DEAD_SECONDS:g} s")
        for _ in range(int(DEAD_SECONDS / SIGN_SECONDS)):
            wait(SIGN_SECONDS)
            now = _read(storage)
            if now is None:
                return
            # Not by the clock, which may be another there.
            if now != first:
                raise ValueError(f"{storage} is in use by {now}; wait for it, stop it, or choose another run.storage")
    storage.delete(OWNER_FILE)


class Owner(AbstractContextManager["Owner"]):
    """Gives signs of life for this process while the body runs, from a thread."""

    def __init__(self, storage: Storage, sign_seconds: float = SIGN_SECONDS) -> None:
        self._storage = storage
        self._sign_seconds = sign_seconds
        self._run = uuid.uuid4().hex
        self._ended = Event()
        # A daemon, so that a storage that does not answer keeps no process alive.
        self._thread = Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Owner:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_JOIN_SECONDS)
        # Left behind, it costs the next start a minute.
        with suppress(StorageError):
            self.require()
            self._storage.delete(OWNER_FILE)

    def require(self) -> None:
        """Raise StorageError where another process writes there by now."""
        found = _read(self._storage)
        if found is not None and found.run != self._run:
            raise StorageError(f"{self._storage} is in use by {found} now, which took it over")

    def _repeat(self) -> None:
        while not self._ended.wait(self._sign_seconds):
            with suppress(StorageError):
                self.require()
                self._write()

    def _write(self) -> None:
        sign = Sign(self._run, socket.gethostname(), os.getpid(), time.time())
        self._storage.write(OWNER_FILE, json.dumps(asdict(sign)).encode())


def _read(storage: Storage) -> Sign | None:
    content = storage.read(OWNER_FILE)
    try:
        return None if content is None else Sign(**json.loads(content))
    except (ValueError, TypeError):
        return None  # cut off while it was written, to a folder
