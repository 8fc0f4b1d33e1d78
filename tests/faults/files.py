"""Disks that are full, and bytes that are not what was written."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INSERTED = (b"\0", b"\xff", b"{", b'"', b"..", b"/etc/passwd", b"../x", b"1e999", b"-1", b"NaN", b"null", b"[" * 99)


def changed(content: bytes, chance: random.Random) -> bytes:
    """A few bytes replaced, removed, repeated or inserted; or the file cut off."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        how = chance.randrange(6)
        if how == 0:
            del data[at:]
        elif how == 1:
            del data[at : at + chance.randint(1, 9)]
        elif how == 2:
            data[at:at] = chance.choice(INSERTED)
        elif how == 3:
            data[at:at] = data[max(0, at - 20) : at]
        elif data:
            data[min(at, len(data) - 1)] = chance.randrange(256)
    return bytes(data)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes at `folder`, a tmpfs, while the body runs. Raises PermissionError without the right."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """The disk has no room while the body runs."""
    ballast = disk / ".ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    try:
        yield
    finally:
        ballast.unlink()
