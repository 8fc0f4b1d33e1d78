"""Whether processes on several nodes see the same folder: one shows a file of it, and the others look for it.

A folder on one node's own disk has the same path on another node, where it is empty or holds something else.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SharedFile:
    """A file as the node `node` sees it; `key` is the setting that names its folder, `folder` that setting's value."""

    key: str
    folder: Path
    path: Path
    digest: str
    node: str

    @classmethod
    def of(cls, key: str, folder: Path, path: Path) -> SharedFile:
        """Return the file as it is here. Raises OSError where it cannot be read."""
        return cls(key, folder, path, _digest(path), socket.gethostname())

    @classmethod
    def mark(cls, key: str, folder: Path, path: Path) -> SharedFile:
        """Write a file with content that no other has.

        Raises:
            ValueError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(16))
            # Absolute, because who looks for it has another working directory.
            return cls.of(key, folder, path.absolute())
        except OSError as error:
            raise ValueError(
                f"{key}={str(folder)!r} cannot be written on node {socket.gethostname()} ({error.strerror}: {path}); "
                f"{_remedy(key)}"
            ) from None

    def require(self) -> None:
        """Check that this node sees the same file.

        Raises:
            ValueError: it sees none at this path, or another.
        """
        try:
            problem = None if _digest(self.path) == self.digest else "with other content"
        except OSError as error:
            problem = error.strerror
        if problem:
            raise ValueError(
                f"{self.key}={str(self.folder)!r} is not the same folder on all nodes: node {socket.gethostname()} "
                f"does not see {self.path.absolute()} of node {self.node} ({problem}); {_remedy(self.key)}"
            )


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _remedy(key: str) -> str:
    return f"mount the same file system there on every node, or give a {key} in a folder that all nodes share"
