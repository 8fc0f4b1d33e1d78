"""Which rank wrote which file of a checkpoint, so that the driver can look for all of them before it publishes."""

from __future__ import annotations

import re
from pathlib import Path


def files_of_rank(folder: Path, rank: int) -> list[str]:
    """Return the names of the files below a checkpoint's folder that this rank wrote, in order.

    A rank's own shards have its number in the names that DeepSpeed (0.19.8) gives them; rank 0 also wrote all else.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if _rank_of(name) == rank]


def _rank_of(name: str) -> int:
    shard = re.search(r"_pp_rank_(\d+)_", name)
    return int(shard[1]) if shard else 0
