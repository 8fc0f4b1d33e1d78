"""A port that is still free when a process opens it some seconds later."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# `ray start` gives those up to 19,999 to its workers.
_LOWEST = 20_000
_TRIES = 100


def free_port() -> int:
    """A port of this machine that nobody listens at, at random.

    It lies below those that the kernel gives to whoever asks for any, as each connection does: another process would
    often have taken one of these before it is used.
    """
    above = _given_by_the_kernel()
    chosen = random.SystemRandom()
    for port in (chosen.randrange(_LOWEST, above) for _ in range(_TRIES if above > _LOWEST else 0)):
        with socket.socket() as free:
            try:
                free.bind(("", port))
            except OSError:
                continue
            return port
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _given_by_the_kernel() -> int:
    """The lowest port that the kernel chooses by itself; 0 where it does not say."""
    try:
        return int(_RANGE.read_text().split()[0])
    except OSError:
        return 0
