"""Messages of a weight sync between processes: frozen and picklable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

ADAPTERS = "medr1_ray_adapters"
"""The key in vLLM's `additional_config` from which its workers read an `AdapterShape`.

vLLM caches compiled graphs by that configuration, so that those with adapters are not taken for those without.
"""


@dataclass(frozen=True)
class AdapterShape:
    """Adapters on every linear layer of the language model and, with `vision`, of the vision tower."""

    rank: int
    alpha: int
    vision: bool

    @property
    def scale(self) -> float:
        """The factor before B A."""
        return self.alpha / self.rank


class BroadcastError(RuntimeError):
    """A broadcast broke, or its group did not come together: perhaps because a member died, and then another may do."""


@dataclass(frozen=True)
class TensorSpec:
    """Position of one parameter in a flat bucket: `offset` in bytes; the size follows from shape and dtype. `name` is
    the parameter's name in the Hugging Face checkpoint; `dtype` is torch's name without the `torch.` prefix."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class WeightBucket:
    """Several parameters that travel together, laid end to end in `size_bytes` bytes.

    `data` locates the bytes in the transport's own terms: an ObjectRef of a uint8 array, CUDA IPC handles by GPU, or
    None for a broadcast. `digest` is of the bytes; empty where the stream itself carries the digest. `frozen`
    parameters never change in a run. A bucket that is not `sent` is still listed: the engine must hold it from an
    earlier update, as its digest shows.
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
    order. A `lasting` update can be loaded at any time; the others only while the learner is sending them."""

    version: int
    buckets: tuple[WeightBucket, ...]
    digest: str
    lasting: bool = True


@dataclass(frozen=True)
class WeightMember:
    """An engine that takes part in a weight group: `ranks` worker processes (its tensor-parallel size). A restarted
    actor has a different `incarnation`."""

    actor: str
    incarnation: str
    ranks: int


@dataclass(frozen=True)
class WeightGroup:
    """One engine's place in a group that broadcasts weights: the learner's rank 0 is rank 0, `rank_offset` is the rank
    of the engine's first worker. All meet at `address` (host:port)."""

    address: str
    world_size: int
    rank_offset: int


@dataclass(frozen=True)
class LoadReport:
    """A loaded weight update, which took `seconds`; for `paused_seconds` of them the engine generated nothing."""

    version: int
    digest: str
    seconds: float
    paused_seconds: float


def weight_groups(address: str, members: Sequence[WeightMember]) -> list[WeightGroup]:
    """Each member's place: ranks follow the learner's in the order of the members, by their tensor-parallel sizes."""
    # Rank 0 is the learner. vLLM 0.32's own Ray client sends offset 1 to every engine, so their ranks would collide.
    offsets = list(accumulate((member.ranks for member in members), initial=1))
    return [WeightGroup(address, offsets[-1], offset) for offset in offsets[:-1]]
