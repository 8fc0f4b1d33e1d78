"""How a policy version travels from the learner to the engines: flat buckets in an object store, one file per node.

    learner rank 0            Ray's object store            each node                     each engine process
    write_buckets ──put──▶ uint8 buckets, few, large ──get──▶ one file in shared memory ──mmap──▶ verify, read_bucket

vLLM's engine core is no Ray worker and cannot resolve an ObjectRef, hence the file. This module knows neither Ray nor
vLLM: `put` and `get` are given to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medr1_ray.types import TensorSpec, WeightBucket, WeightUpdate

ALIGNMENT_BYTES = 64
BUCKET_BYTES = 256 * 2**20
SHARED_MEMORY = Path("/dev/shm")


class WeightDigestError(ValueError):
    """The bytes at hand are not those that the learner sent."""


@dataclass(frozen=True)
class StagedUpdate:
    """An update whose buckets lie in one file of this node: `data` of each bucket is its byte offset in the file."""

    path: str
    update: WeightUpdate


class WeightTransport(Protocol):
    """Moves all parameters of one policy version; the learner sends, each rollout actor stages for its engine."""

    def send(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightUpdate:
        """Publish the tensors; each is copied before the next is asked for, so a gathered shard may be freed."""
        ...

    def stage(self, update: WeightUpdate) -> AbstractContextManager[StagedUpdate]:
        """Make the update readable by the processes of this node for as long as the context is open."""
        ...


@dataclass(frozen=True)
class ObjectStoreTransport:
    """Buckets through an object store: `put` returns a reference, `get` its uint8 array (`ray.put`, `ray.get`)."""

    put: Callable[[NDArray[np.uint8]], Any]
    get: Callable[[Any], NDArray[np.uint8]]
    bucket_bytes: int = BUCKET_BYTES

    def send(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightUpdate:
        return write_buckets(named_tensors, version, self.bucket_bytes, self.put)

    def stage(self, update: WeightUpdate) -> AbstractContextManager[StagedUpdate]:
        return staged(update, self.get)


def write_buckets(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    version: int,
    bucket_bytes: int,
    put: Callable[[NDArray[np.uint8]], Any],
) -> WeightUpdate:
    """Pack tensors of any dtype and device into flat uint8 buckets of about `bucket_bytes`, and `put` each.

    Tensors start at multiples of 64 bytes and are never cut: one that is larger than `bucket_bytes` gets a bucket of
    its own. Raises ValueError when a name comes twice.
    """
    buckets: list[WeightBucket] = []
    names: set[str] = set()
    specs: list[TensorSpec] = []
    buffer = np.empty(bucket_bytes, np.uint8)
    used = 0

    def close() -> None:
        data = buffer[:used]
        buckets.append(WeightBucket(tuple(specs), used, _digest(data), put(data)))

    for name, tensor in named_tensors:
        if name in names:
            raise ValueError(f"parameter {name!r} was sent twice in policy version {version}; send each once")
        names.add(name)
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        size = flat.numel()
        if specs and used + size > bucket_bytes:
            close()
            specs, used = [], 0
            buffer = np.empty(bucket_bytes, np.uint8)
        if size > buffer.size:
            buffer = np.empty(_aligned(size), np.uint8)
        specs.append(TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), used))
        torch.from_numpy(buffer[used : used + size]).copy_(flat)
        buffer[used + size : _aligned(used + size)] = 0
        used = min(_aligned(used + size), buffer.size)
    if specs:
        close()
    return WeightUpdate(version, tuple(buckets), update_digest(version, buckets))


def update_digest(version: int, buckets: Iterable[WeightBucket]) -> str:
    """Hex BLAKE2b-128 over the version and every bucket's digest, size and tensor specs, in order."""
    state = hashlib.blake2b(str(version).encode(), digest_size=16)
    for bucket in buckets:
        state.update(repr((bucket.digest, bucket.size_bytes, bucket.tensors)).encode())
    return state.hexdigest()


@contextmanager
def staged(update: WeightUpdate, get: Callable[[Any], NDArray[np.uint8]]) -> Iterator[StagedUpdate]:
    """Hold the update's file of this node; the first of several actors fetches and writes, the last one removes.

    A lock on the file itself says that somebody reads it, and the kernel drops that lock with its process: whatever
    is found unlocked was left by a crash and is removed.
    """
    size = sum(bucket.size_bytes for bucket in update.buckets)
    directory = _staging_directory(size)
    path = directory / f"{update.digest}.weights"
    with _node_lock(directory):
        for left_over in directory.glob("*.weights*"):
            if left_over != path:
                _remove_unless_in_use(left_over)
        if not path.exists():
            _write(path, update, get)
        reader = path.open("rb")
        fcntl.flock(reader, fcntl.LOCK_SH)
    try:
        yield StagedUpdate(str(path), _with_file_offsets(update))
    finally:
        with _node_lock(directory):
            reader.close()
            _remove_unless_in_use(path)


def read_bucket(buffer: NDArray[np.uint8], bucket: WeightBucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The bucket's tensors as views of `buffer` (uint8 [size_bytes]), without a copy."""
    memory = torch.from_numpy(buffer)
    for spec in bucket.tensors:
        dtype = getattr(torch, spec.dtype)
        size = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
        yield spec.name, memory[spec.offset : spec.offset + size].view(dtype).reshape(spec.shape)


def open_staged(staged_update: StagedUpdate) -> list[tuple[WeightBucket, NDArray[np.uint8]]]:
    """Map the file, check every digest over the bytes that will be loaded, and return buckets with their buffers.

    The mapping is private and outlives the file's removal. Raises WeightDigestError.
    """
    update = staged_update.update
    file = np.memmap(staged_update.path, np.uint8, mode="c")
    buffers = [file[bucket.data : bucket.data + bucket.size_bytes] for bucket in update.buckets]
    # hashlib lets go of the interpreter lock, so buckets are hashed side by side where there are cores.
    with ThreadPoolExecutor(max_workers=min(8, max(1, len(buffers)))) as pool:
        found = list(pool.map(_digest, buffers))
    for number, (bucket, digest) in enumerate(zip(update.buckets, found, strict=True)):
        if digest != bucket.digest:
            raise WeightDigestError(
                f"policy version {update.version}: bucket {number} of {len(buffers)} has digest {digest}, the "
                f"learner sent {bucket.digest}; nothing was loaded"
            )
    if update_digest(update.version, update.buckets) != update.digest:
        raise WeightDigestError(
            f"policy version {update.version}: names, shapes, order or version do not match the learner's digest "
            f"{update.digest}; nothing was loaded"
        )
    return list(zip(update.buckets, buffers, strict=True))


def _digest(data: NDArray[np.uint8]) -> str:
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _with_file_offsets(update: WeightUpdate) -> WeightUpdate:
    start, buckets = 0, []
    for bucket in update.buckets:
        buckets.append(replace(bucket, data=start))
        start += _aligned(bucket.size_bytes)
    return replace(update, buckets=tuple(buckets))


def _staging_directory(size_bytes: int) -> Path:
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 1.1 * size_bytes
    directory = (SHARED_MEMORY if roomy else Path(tempfile.gettempdir())) / f"medr1_ray-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _write(path: Path, update: WeightUpdate, get: Callable[[Any], NDArray[np.uint8]]) -> None:
    partial = path.with_suffix(".weights-partial")
    with partial.open("wb") as file:
        for bucket in update.buckets:
            data = get(bucket.data)
            file.write(data.data)
            file.write(bytes(_aligned(data.size) - data.size))
    partial.rename(path)


@contextmanager
def _node_lock(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_unless_in_use(path: Path) -> None:
    try:
        file: IO[bytes] = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        path.unlink()
