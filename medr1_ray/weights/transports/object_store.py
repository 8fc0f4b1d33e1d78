"""Weights through Ray's object store, on any hardware: flat buckets, and one file per node for its engines.

    learner rank 0            Ray's object store            each node                     each engine process
    fill_buckets ──put──▶ uint8 buckets, few, large ──get──▶ one file in shared memory ──mmap──▶ verify, read_bucket

vLLM's engine core is not a Ray worker and cannot resolve an ObjectRef, hence the file. This module imports neither Ray
nor vLLM: `put` and `get` are arguments.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
    """An update whose buckets are in one file on this node: `data` of each bucket that is sent is its offset in
    bytes."""

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

    def publish(self, source: WeightSource, version: int, *, to_newcomers: bool) -> WeightUpdate | None:
        if self._frozen is None:
            frozen = self._fill(source.tensors(frozen=True))
            # Kept for the whole run: the store frees an object with its last reference, and new engines still need
            # these.
            self._frozen = tuple(replace(bucket, frozen=True) for bucket in frozen)
        buckets = (*self._frozen, *self._fill(source.tensors(frozen=False)))
        if self._rank > 0:
            return None
        return WeightUpdate(version, buckets, update_digest(version, buckets))

    def send(self) -> None:
        """Nothing to do: the store has had the bytes since `publish`."""

    def release(self) -> None:
        """Nothing to do: the store frees what is no longer referenced."""

    def _fill(self, named_tensors: Iterator[tuple[str, torch.Tensor]]) -> tuple[WeightBucket, ...]:
        if self._rank > 0:
            for _ in named_tensors:  # take part in the gathering
                pass
            return ()
        return fill_buckets(named_tensors, self._bucket_bytes, self._put)


@dataclass(frozen=True)
class ObjectStoreReceiver:
    """Fetches buckets with `get` (reference to uint8 array) into one file for all engines of the node."""

    get: Callable[[Any], NDArray[np.uint8]]

    @contextmanager
    def receive(self, update: WeightUpdate, held: frozenset[str]) -> Iterator[tuple[bytes, ...]]:
        with staged(without_held(update, held), self.get) as on_node:
            yield (pickle.dumps(on_node),)


@contextmanager
def staged(update: WeightUpdate, get: Callable[[Any], NDArray[np.uint8]]) -> Iterator[StagedUpdate]:
    """Hold the update's file on this node; the first of several actors writes it, the last one removes it.

    A reader holds a lock on the file itself. The kernel releases it when the process ends, so a file that is found
    unlocked was left by a crash and is removed.
    """
    sent = [bucket for bucket in update.buckets if bucket.sent]
    folders = _staging_folders()
    # Named by what is sent, since engines that hold the frozen buckets need a different file from those that do not.
    paths = [folder / f"{update_digest(update.version, sent)}.weights" for folder in folders]
    # One lock for both folders: while one actor writes, another must not find the first too full and fetch its own.
    with _node_lock(folders[0]):
        # Also files of other versions that a crashed actor left; those in use are locked.
        for left_over in [file for folder in folders for file in folder.glob("*.weights*")]:
            if left_over not in paths:
                _remove_unless_in_use(left_over)
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            path = _roomy(paths, sum(bucket.size_bytes for bucket in sent))
            _write(path, update, get)
        reader = path.open("rb")
        # Must happen under the node's lock: in between, another actor could find the file unlocked and remove it.
        fcntl.flock(reader, fcntl.LOCK_SH)
    try:
        yield StagedUpdate(str(path), _with_file_offsets(update))
    finally:
        with _node_lock(folders[0]):
            # Releases our own lock, which would otherwise count as a use of the file.
            reader.close()
            _remove_unless_in_use(path)


def open_staged(staged_update: StagedUpdate) -> list[tuple[WeightBucket, NDArray[np.uint8]]]:
    """Map the file, check every digest over the bytes that will be loaded, and return the sent buckets with their
    buffers.

    The mapping is private and outlives the file's removal. Raises WeightDigestError.
    """
    update = staged_update.update
    sent = [bucket for bucket in update.buckets if bucket.sent]
    if not sent:
        return []
    # Copy-on-write: torch needs writable memory, and a write must not reach the file that other engines read.
    file = np.memmap(staged_update.path, np.uint8, mode="c")
    buffers = [file[bucket.data : bucket.data + bucket.size_bytes] for bucket in sent]
    for number, (bucket, buffer) in enumerate(zip(sent, buffers, strict=True)):
        if (digest := bytes_digest(buffer)) != bucket.digest:
            raise WeightDigestError(
                f"policy version {update.version}: bucket {number} of {len(buffers)} has digest {digest}, the "
                f"learner sent {bucket.digest}; nothing was loaded"
            )
    # The buckets' bytes are proven above; this covers their order and specs, the version, and the buckets not sent.
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
        # Must match the padding in `_write`: tensors are viewed in place and need aligned addresses.
        start += aligned(bucket.size_bytes) if bucket.sent else 0
    return replace(update, buckets=tuple(buckets))


def _staging_folders() -> list[Path]:
    """Return this user's own folders for files, the one in shared memory first.

    Raises:
        PermissionError: somebody else made one of them, who could then change what engines load.
    """
    places = [SHARED_MEMORY] if SHARED_MEMORY.is_dir() else []
    return [_own(place / f"medr1_ray-{os.getuid()}") for place in (*places, Path(tempfile.gettempdir()))]


def _own(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{folder}: belongs to another user, is a link, or is open to others, who could change weights on their "
            "way to the engines; remove it"
        )
    return folder


def _roomy(paths: Sequence[Path], size_bytes: int) -> Path:
    """Return the first path where so many bytes fit, else the last."""
    # A container may have as little as 64 MiB of shared memory (Docker's default); a file that does not fit would fail
    # only while it is being written.
    return next((path for path in paths[:-1] if shutil.disk_usage(path.parent).free > 1.1 * size_bytes), paths[-1])


def _write(path: Path, update: WeightUpdate, get: Callable[[Any], NDArray[np.uint8]]) -> None:
    # Renamed when complete, because other actors read whatever has the final name.
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
