"""A lock on a file, which ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


class FileLock:
    """Holds the lock on `path` until `release`, or until the process ends.

    On a file system without locks it holds nothing.

    Raises:
        BlockingIOError: another process holds it; the message is that process and its host.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise BlockingIOError(holder) from None
        except OSError:
            return
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()
