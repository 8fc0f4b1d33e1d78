"""Fingerprints of tensors where they are: the same number on a CPU and on any GPU, without a copy to main memory.

NH of Black et al. (UMAC, CRYPTO 1999, section 4): with k random words, the sum of (x_i + k_i)(x_j + k_j) modulo 2^64
over pairs of words. Integer arithmetic wraps the same everywhere and adds up in any order, so that it does not matter
how a device cuts the work. What differs by accident collides with a probability of about 2^-32 a piece; no defence
against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from medr1_ray.weights.messages import WeightBucket

PIECE_WORDS = 2**20
_WORD_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SEED = 20250313
_keys: dict[torch.device, Tensor] = {}


def fingerprint(tensor: Tensor) -> Tensor:
    """int64 [pieces] on the tensor's device, of its elements' bytes in row-major order."""
    words = tensor.detach().contiguous().reshape(-1).view(_WORD_TYPES[tensor.dtype.itemsize])
    return torch.stack([_piece(piece) for piece in words.split(PIECE_WORDS)])


class StreamDigest:
    """A digest over tensors in the order in which they are added; names count, so that an exchange is noticed."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._fingerprints: list[Tensor] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor. On a GPU this only queues the work on the current stream."""
        self._names.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        self._fingerprints.append(fingerprint(tensor))

    def digest(self) -> bytes:
        """16 bytes over all that was added; waits for the device."""
        if any(each.is_cuda for each in self._fingerprints):
            torch.cuda.synchronize()  # tensors may have been added on several streams
        state = hashlib.blake2b(digest_size=16)
        for name, each in zip(self._names, self._fingerprints, strict=True):
            state.update(repr((name, each.tolist())).encode())
        return state.digest()


def digest_of(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The hex digest of named tensors in their order."""
    stream = StreamDigest()
    for name, tensor in named_tensors:
        stream.add(name, tensor)
    return stream.digest().hex()


def _piece(words: Tensor) -> Tensor:
    mixed = words.long() + _key(words.device)[: words.numel()]
    half = words.numel() // 2
    return (mixed[:half] * mixed[half : 2 * half]).sum() + mixed[2 * half :].sum()


def _key(device: torch.device) -> Tensor:
    if device not in _keys:
        generator = torch.Generator().manual_seed(_SEED)
        _keys[device] = torch.randint(-(2**62), 2**62, (PIECE_WORDS,), generator=generator).to(device)
    return _keys[device]


class WeightDigestError(ValueError):
    """The bytes at hand are not those that the learner sent."""


def update_digest(version: int, buckets: Iterable[WeightBucket]) -> str:
    """Hex BLAKE2b-128 over the version and every bucket's digest, size and tensor specs, in order."""
    state = hashlib.blake2b(str(version).encode(), digest_size=16)
    for bucket in buckets:
        state.update(repr((bucket.digest, bucket.size_bytes, bucket.tensors)).encode())
    return state.hexdigest()


def bytes_digest(data: NDArray[np.uint8]) -> str:
    """Hex XXH3-128: it finds what goes wrong by accident, at the speed of memory. Nobody here would forge weights."""
    return xxhash.xxh3_128_hexdigest(data.data)
