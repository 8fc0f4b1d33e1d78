"""Where the cluster to join is, and whether it answers; without Ray, whose import takes a second."""

from __future__ import annotations

import os
import socket

from medr1_ray.config import Config, shown_text

# A node of the same network answers in milliseconds.
_REACH_SECONDS = 3.0


def require_reachable(config: Config) -> None:
    """Check that the cluster to join answers, if there is one: Ray tries for two minutes.

    Raises:
        ValueError: nothing listens at its address, or that is the address of something else.
    """
    key, address = cluster_address(config)
    given = shown_text(address)
    if address.startswith(("http://", "https://", "ray://")):
        raise ValueError(
            f"{key}={given!r} is not where a cluster is joined; give HOST:6379, as `ray start --head` prints it, or "
            "submit the command with `ray job submit`, which takes this address"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
        except OSError as error:
            raise ValueError(
                f"{key}={given!r} does not answer ({error}); start Ray there with `ray start --head`, or unset "
                f"{key} to run on this machine alone"
            ) from None


def cluster_address(config: Config) -> tuple[str, str]:
    """Return where the address of the cluster to join comes from, and the address; empty to start a local cluster."""
    if config.cluster.address:
        return "cluster.address", config.cluster.address
    return "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "")
