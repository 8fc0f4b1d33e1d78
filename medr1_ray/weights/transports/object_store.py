"""Weights through Ray's object store, on any hardware: flat buckets, and one file per node for its engines.

    learner rank 0            Ray's object store            each node                     each engine process
    fill_buckets ──put──▶ uint8 buckets, few, large ──get──▶ one file in shared memory ──mmap──▶ verify, read_bucket

vLLM's engine core is no Ray worker and cannot resolve an ObjectRef, hence the file. This module knows neither Ray nor
vLLM: `put` and `get` are given to it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from medr1_ray.weights.buckets import BUCKET_BYTES, aligned, fill_buckets, without_held
from medr1_ray.weights.digests import WeightDigestError, bytes_digest, update_digest
from medr1_ray.weights.messages import WeightBucket, WeightUpdate
from medr1_ray.weights.protocol import WeightSource

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class StagedUpdate:
    """An update whose buckets lie in one file of this node: `data` of each that is sent is its byte offset there."""

    path: str
    update: WeightUpdate


class ObjectStoreSender:
    """Rank 0 puts buckets into an object store with `put`, which copies. Frozen ones are put once and stay there."""

    def __init__(
        self, put: Callable[[NDArray[np.uint8]], Any], rank: int, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._put = put
        self._rank = rank
        self._bucket_bytes = bucket_bytes
        self._frozen: tuple[WeightBucket, ...] | None = None

    def offer(self, source: WeightSource, version: int, *, to_newcomers: bool) -> WeightUpdate | None:
        if self._frozen is None:
            frozen = self._fill(source.tensors(frozen=True))
            self._frozen = tuple(replace(bucket, frozen=True) for bucket in frozen)
        buckets = (*self._frozen, *self._fill(source.tensors(frozen=False)))
        if self._rank > 0:
            return None
        return WeightUpdate(version, buckets, update_digest(version, buckets))

    def send(self) -> None:
        """The store has the bytes since `offer`."""

    def release(self) -> None:
        """The store frees what nobody refers to."""

    def _fill(self, named_tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[WeightBucket, ...]:
        if self._rank > 0:
            for _ in named_tensors:  # take part in the gathering
                pass
            return ()
        return fill_buckets(named_tensors, self._bucket_bytes, self._put)


@dataclass(frozen=True)
class ObjectStoreReceiver:
    """Fetches buckets with `get` (a uint8 array of a reference) into one file for all engines of the node."""

    get: Callable[[Any], NDArray[np.uint8]]

    @contextmanager
    def receive(self, update: WeightUpdate, held: frozenset[str]) -> Iterator[tuple[bytes, ...]]:
        with staged(without_held(update, held), self.get) as on_node:
            yield (pickle.dumps(on_node),)


@contextmanager
def staged(update: WeightUpdate, get: Callable[[Any], NDArray[np.uint8]]) -> Iterator[StagedUpdate]:
    """Hold the update's file of this node; the first of several actors fetches and writes, the last one removes.

    A lock on the file itself says that somebody reads it, and the kernel drops that lock with its process: whatever
    is found unlocked was left by a crash and is removed.
    """
    sent = [bucket for bucket in update.buckets if bucket.sent]
    directory = _staging_directory(sum(bucket.size_bytes for bucket in sent))
    # Engines that hold the frozen buckets and engines that do not read different files.
    path = directory / f"{update_digest(update.version, sent)}.weights"
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


def open_staged(staged_update: StagedUpdate) -> list[tuple[WeightBucket, NDArray[np.uint8]]]:
    """Map the file, check every digest over the bytes that will be loaded, and return what was sent with its buffers.

    The mapping is private and outlives the file's removal. Raises WeightDigestError.
    """
    update = staged_update.update
    sent = [bucket for bucket in update.buckets if bucket.sent]
    if not sent:
        return []
    file = np.memmap(staged_update.path, np.uint8, mode="c")
    buffers = [file[bucket.data : bucket.data + bucket.size_bytes] for bucket in sent]
    for number, (bucket, buffer) in enumerate(zip(sent, buffers, strict=True)):
        if (digest := bytes_digest(buffer)) != bucket.digest:
            raise WeightDigestError(
                f"policy version {update.version}: bucket {number} of {len(buffers)} has digest {digest}, the "
                f"learner sent {bucket.digest}; nothing was loaded"
            )
    if update_digest(update.version, update.buckets) != update.digest:
        raise WeightDigestError(
            f"policy version {update.version}: names, shapes, order or version do not match the learner's digest "
            f"{update.digest}; nothing was loaded"
        )
    return list(zip(sent, buffers, strict=True))


def _with_file_offsets(update: WeightUpdate) -> WeightUpdate:
    start, buckets = 0, []
    for bucket in update.buckets:
        buckets.append(replace(bucket, data=start) if bucket.sent else bucket)
        start += aligned(bucket.size_bytes) if bucket.sent else 0
    return replace(update, buckets=tuple(buckets))


def _staging_directory(size_bytes: int) -> Path:
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 1.1 * size_bytes
    directory = (SHARED_MEMORY if roomy else Path(tempfile.gettempdir())) / f"medr1_ray-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _write(path: Path, update: WeightUpdate, get: Callable[[Any], NDArray[np.uint8]]) -> None:
    partial = path.with_suffix(".weights-partial")
    with partial.open("wb") as file:
        for bucket in filter(lambda bucket: bucket.sent, update.buckets):
            data = get(bucket.data)
            file.write(data.data)
            file.write(bytes(aligned(data.size) - data.size))
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
