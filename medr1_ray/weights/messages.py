"""The dataclasses of a weight sync that travel between processes: frozen and picklable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """Where one parameter lies in a flat bucket: `offset` and the size that follows from shape and dtype, in
    bytes. `name` is the Hugging Face checkpoint's; `dtype` is torch's name without the `torch.` prefix."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class WeightBucket:
    """Several parameters that travel together, laid end to end in `size_bytes` bytes.

    `data` says where the bytes are, in the transport's own terms: an ObjectRef of a uint8 array, CUDA IPC handles by
    GPU, or nothing where they come by broadcast. `digest` is of the bytes; empty where they are proven in the stream
    itself. `frozen` parameters never change in a run. A bucket that is not `sent` is listed all the same: the engine
    must hold it, by its digest, from an earlier update.
    """

    tensors: tuple[TensorSpec, ...]
    size_bytes: int
    digest: str
    data: Any
    frozen: bool = False
    sent: bool = True


@dataclass(frozen=True)
class WeightUpdate:
    """All parameters of one policy version. `digest` is over the version and the buckets' digests and tensors, in
    order. A `lasting` update can be loaded at any time; another only while the learner is sending it."""

    version: int
    buckets: tuple[WeightBucket, ...]
    digest: str
    lasting: bool = True


@dataclass(frozen=True)
class WeightMember:
    """An engine that takes part in a weight group: `ranks` worker processes (its tensor-parallel size). A restarted
    actor has another `incarnation`."""

    actor: str
    incarnation: str
    ranks: int


@dataclass(frozen=True)
class WeightGroup:
    """One process's place in a group that broadcasts weights: the learner's rank 0 is rank 0, `rank_offset` is the
    engine's first worker's. All meet at `address` (host:port)."""

    address: str
    world_size: int
    rank_offset: int


@dataclass(frozen=True)
class LoadReport:
    """A finished weight update: for `paused_seconds` of its `seconds` the engine generated nothing."""

    version: int
    digest: str
    seconds: float
    paused_seconds: float


def weight_groups(address: str, members: Sequence[WeightMember]) -> list[WeightGroup]:
    """Each member's place behind the learner, whatever the others' tensor-parallel sizes."""
    offsets = list(accumulate((member.ranks for member in members), initial=1))
    return [WeightGroup(address, offsets[-1], offset) for offset in offsets[:-1]]
