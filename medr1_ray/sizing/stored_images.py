"""What decoded images take of Ray's object store, and whether that of this machine would have room for them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from medr1_ray.config import Config
from medr1_ray.data.encoding import IMAGE_CACHE_BYTES

_STORE_SHARE = 0.3
"""Of the memory that a node has available, for Ray's object store where `ray start` is not told otherwise."""
_MEMORY, _SHARED_MEMORY = Path("/proc/meminfo"), Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
_STEPS_BEGUN = 3
"""The step that is drawn, and two ahead of it (`run/startup.py`)."""


def stored_image_bytes(config: Config) -> int:
    """Return what images take at most of the object store on the encoders' node, each question having one of its own.

    Those of groups that wait for engines and ranks; those that are encoded ahead, or `IMAGE_CACHE_BYTES` of images that
    were used last if that is more; and as much of those of evaluations.
    """
    train, image = config.train, 3 * config.data.image_size**2
    step = train.prompts_per_step * image
    in_flight = step * (train.max_staleness // train.steps_per_rollout + 1)
    return in_flight + max(_STEPS_BEGUN * step, IMAGE_CACHE_BYTES) + IMAGE_CACHE_BYTES


def default_store_bytes() -> int:
    """Return the size of the object store that Ray would make on this machine, or in this container, now, as far as it
    has shared memory (`ray._private.utils.resolve_object_store_memory`)."""
    told = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    available = int(told["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # ValueError: "max", no limit
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, limit - used)
    shared = os.statvfs(_SHARED_MEMORY)
    return min(int(_STORE_SHARE * available), shared.f_frsize * shared.f_bavail)
