"""Flat buckets of parameters: packing them, reading them, and joining what several ranks published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medr1_ray.weights.digests import bytes_digest, update_digest
from medr1_ray.weights.messages import TensorSpec, WeightBucket, WeightUpdate

ALIGNMENT_BYTES = 64
BUCKET_BYTES = 256 * 2**20


def without_held(update: WeightUpdate, held: frozenset[str]) -> WeightUpdate:
    """The same update, without sending the frozen buckets that an engine already holds."""
    return replace(
        update,
        buckets=tuple(
            replace(bucket, sent=False, data=None) if bucket.frozen and bucket.digest in held else bucket
            for bucket in update.buckets
        ),
    )


def write_buckets(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    version: int,
    bucket_bytes: int,
    put: Callable[[NDArray[np.uint8]], Any],
) -> WeightUpdate:
    """An update of these tensors, all of them sent, in buckets made by `fill_buckets`."""
    buckets = fill_buckets(named_tensors, bucket_bytes, put)
    return WeightUpdate(version, buckets, update_digest(version, buckets))


def fill_buckets(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int,
    put: Callable[[NDArray[np.uint8]], Any],
) -> tuple[WeightBucket, ...]:
    """Pack tensors of any dtype and device into flat uint8 buckets of about `bucket_bytes`, and `put` each.

    Tensors start at multiples of 64 bytes and are never cut: one that is larger than `bucket_bytes` gets a bucket of
    its own. Every bucket reuses the same memory, so `put` must copy it. Raises ValueError when a name comes twice.
    """
    buckets: list[WeightBucket] = []
    names: set[str] = set()
    specs: list[TensorSpec] = []
    # Reused for all buckets: touching fresh memory for each of them made publishing slower.
    buffer = np.empty(bucket_bytes, np.uint8)
    used = 0

    def close() -> None:
        data = buffer[:used]
        buckets.append(WeightBucket(tuple(specs), used, bytes_digest(data), put(data)))

    for name, tensor in named_tensors:
        if name in names:
            raise ValueError(f"parameter {name!r} occurs twice in one policy version; each must occur once")
        names.add(name)
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        size = flat.numel()
        if specs and used + size > bucket_bytes:
            close()
            specs, used = [], 0
        if size > buffer.size:
            buffer = np.empty(aligned(size), np.uint8)
        specs.append(tensor_spec(name, tensor, used))
        torch.from_numpy(buffer[used : used + size]).copy_(flat)
        # The gap is part of the bucket and of its digest, and would otherwise hold bytes of the previous bucket.
        buffer[used + size : aligned(used + size)] = 0
        # `bucket_bytes` need not be a multiple of 64.
        used = min(aligned(used + size), buffer.size)
    if specs:
        close()
    return tuple(buckets)


def tensor_spec(name: str, tensor: torch.Tensor, offset: int = 0) -> TensorSpec:
    """The spec of a tensor at this offset of its bucket."""
    return TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset)


def size_bytes(spec: TensorSpec) -> int:
    """Size of the tensor's elements in bytes."""
    size: int = getattr(torch, spec.dtype).itemsize
    return int(np.prod(spec.shape, dtype=np.int64)) * size


def packed_bucket(specs: Sequence[TensorSpec], digest: str, *, frozen: bool = False) -> WeightBucket:
    """A bucket of tensors laid end to end without gaps, which is vLLM's packed format.

    Raises ValueError for tensors of several dtypes, some of which would not start at a multiple of their item size.
    """
    dtypes = sorted({spec.dtype for spec in specs})
    if len(dtypes) > 1:
        raise ValueError(
            f"parameters of several dtypes ({', '.join(dtypes)}) cannot be packed without gaps; use "
            "cluster.weight_transport=object_store"
        )
    placed, used = [], 0
    for spec in specs:
        placed.append(replace(spec, offset=used))
        used += size_bytes(spec)
    return WeightBucket(tuple(placed), used, digest, None, frozen)


def read_bucket(buffer: NDArray[np.uint8], bucket: WeightBucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The bucket's tensors as views of `buffer` (uint8 [size_bytes]), without a copy."""
    memory = torch.from_numpy(buffer)
    for spec in bucket.tensors:
        dtype = getattr(torch, spec.dtype)
        yield spec.name, memory[spec.offset : spec.offset + size_bytes(spec)].view(dtype).reshape(spec.shape)


def aligned(size: int) -> int:
    """The size, rounded up to a multiple of 64 bytes."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def merge_updates(updates: Sequence[WeightUpdate | None]) -> WeightUpdate:
    """One update from those that the ranks published (None where a rank leaves it to rank 0), with the handles of all
    their GPUs.

    Raises ValueError where the ranks' bytes differ, i.e. their parameters have diverged.
    """
    # Rank 0 always publishes, so there is at least one.
    first, *others = [update for update in updates if update is not None]
    if not others:
        return first
    for other in others:
        if other.digest != first.digest:
            raise ValueError(
                f"policy version {first.version}: the learner ranks hold different parameters (digests {first.digest} "
                f"and {other.digest}); resume from the last checkpoint"
            )
    buckets = (
        replace(same[0], data={gpu: handle for one in same for gpu, handle in one.data.items()})
        for same in zip(*(update.buckets for update in (first, *others)), strict=True)
    )
    return replace(first, buckets=tuple(buckets))
