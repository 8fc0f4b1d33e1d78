"""Tensors of several types, and a store that stands in for Ray's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medr1_ray.weights.buckets import tensor_spec, write_buckets
from medr1_ray.weights.messages import TensorSpec, WeightUpdate

TENSORS = {
    "a": torch.arange(15, dtype=torch.bfloat16).reshape(3, 5),  # 30 bytes
    "b": torch.tensor(3.5),  # 4 bytes
    "c": torch.arange(100, dtype=torch.float32).reshape(10, 10).T,  # 400 bytes, not contiguous
    "d": torch.tensor([True, False, True]),  # 3 bytes
    "e": torch.zeros(0, 4),  # nothing
}


def in_store(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As an object store does: a copy that nobody can write to."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def written(version: int = 3, bucket_bytes: int = 128) -> WeightUpdate:
    return write_buckets(TENSORS.items(), version, bucket_bytes, in_store)


def as_is(reference: Any) -> Any:
    return reference


class Source:
    """Tensors, of which those named in `frozen` are; notes what was gone through."""

    def __init__(self, tensors: dict[str, torch.Tensor] = TENSORS, frozen: str = "cd") -> None:
        self._tensors = tensors
        self._frozen = frozen
        self.gathered: list[str] = []

    def specs(self, *, frozen: bool) -> list[TensorSpec]:
        return [tensor_spec(name, tensor) for name, tensor in self._tensors.items() if (name in self._frozen) == frozen]

    def tensors(self, *, frozen: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors.items():
            if (name in self._frozen) == frozen:
                self.gathered.append(name)
                yield name, tensor
