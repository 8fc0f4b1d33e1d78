"""Digests that prove an update: of bytes in main memory, of tensors where they are, and of a whole update.

Fingerprints of tensors are computed on the tensor's device, with the same result on a CPU and on any GPU, and without a
copy to main memory. They are NH of Black et al. (UMAC, CRYPTO 1999, section 4): with k random words, the sum of
(x_i + k_i)(x_j + k_j) modulo 2^64 over pairs of words. Integer arithmetic wraps identically everywhere and sums in any
order, so it does not matter how a device splits the work. Accidental differences collide with a probability of about
2^-32 per piece; it does not protect against forgery.
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
# Fixed, because both ends of a transport must use the same keys.
_SEED = 20250313
_keys: dict[torch.device, Tensor] = {}


def fingerprint(tensor: Tensor) -> Tensor:
    """The fingerprint of a tensor's bytes in row-major order: int64 [pieces], on the tensor's device."""
    # As integers: floating-point sums would depend on their order, and NaN differs from itself.
    words = tensor.detach().contiguous().reshape(-1).view(_WORD_TYPES[tensor.dtype.itemsize])
    return torch.stack([_piece(piece) for piece in words.split(PIECE_WORDS)])


class StreamDigest:
    """A digest over tensors in the order of `add`; it includes their names, so that swapped tensors are noticed."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._fingerprints: list[Tensor] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Add one tensor. On a GPU this only queues the work on the current stream."""
        self._names.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        self._fingerprints.append(fingerprint(tensor))

    def digest(self) -> bytes:
        """16 bytes over everything added; waits for the device."""
        if any(each.is_cuda for each in self._fingerprints):
            torch.cuda.synchronize()  # tensors may have been added on different streams
        state = hashlib.blake2b(digest_size=16)
        for name, each in zip(self._names, self._fingerprints, strict=True):
            state.update(repr((name, each.tolist())).encode())
        return state.digest()


def digest_of(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hex digest of named tensors, in their order."""
    stream = StreamDigest()
    for name, tensor in named_tensors:
        stream.add(name, tensor)
    return stream.digest().hex()


def _piece(words: Tensor) -> Tensor:
    mixed = words.long() + _key(words.device)[: words.numel()]
    half = words.numel() // 2
    # An odd number of words leaves the last one without a partner; it is added as it is.
    return (mixed[:half] * mixed[half : 2 * half]).sum() + mixed[2 * half :].sum()


def _key(device: torch.device) -> Tensor:
    if device not in _keys:
        # Drawn on the CPU and then copied: a GPU's generator gives other numbers for the same seed.
        generator = torch.Generator().manual_seed(_SEED)
        _keys[device] = torch.randint(-(2**62), 2**62, (PIECE_WORDS,), generator=generator).to(device)
    return _keys[device]


class WeightDigestError(ValueError):
    """The bytes received are not those that the learner sent."""


def update_digest(version: int, buckets: Iterable[WeightBucket]) -> str:
    """Hex BLAKE2b-128 over the version and every bucket's digest, size and tensor specs, in order."""
    state = hashlib.blake2b(str(version).encode(), digest_size=16)
    for bucket in buckets:
        state.update(repr((bucket.digest, bucket.size_bytes, bucket.tensors)).encode())
    return state.hexdigest()


def bytes_digest(data: NDArray[np.uint8]) -> str:
    """Hex XXH3-128 of the bytes: finds accidental changes at memory speed; not meant against forgery."""
    return xxhash.xxh3_128_hexdigest(data.data)
