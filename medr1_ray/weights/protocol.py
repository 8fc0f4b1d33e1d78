"""How a policy version travels from the learner to the engines: the two ends that every transport has.

A `WeightSender` in each learner rank, a `WeightReceiver` in each rollout actor. What comes out of a receiver goes to
vLLM's workers, where `engine/` checks and loads it. Whatever the way, an update is complete, of one version, and proven
by digests before an engine serves from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from medr1_ray.weights.messages import TensorSpec, WeightUpdate


class WeightSource(Protocol):
    """The learner's parameters under their checkpoint names, those that are `frozen` or the others.

    Going through `tensors` gathers shards: all ranks do it together. A tensor is whole only until the next is asked
    for. `specs` are the same parameters in the same order, without gathering; their offsets are 0.
    """

    def specs(self, *, frozen: bool) -> list[TensorSpec]: ...

    def tensors(self, *, frozen: bool) -> Iterator[tuple[str, torch.Tensor]]: ...


class WeightSender(Protocol):
    """A learner rank's end of a transport. Every rank calls the same methods in the same order."""

    def offer(self, source: WeightSource, version: int, *, to_newcomers: bool) -> WeightUpdate | None:
        """What the engines must know to receive the version; None on ranks that have nothing to say.

        Frozen parameters are left out where the transport decides so and nobody is new (`to_newcomers`).
        """
        ...

    def send(self) -> None:
        """Move the bytes, where that takes both ends at once; comes after `offer`, while the engines receive."""
        ...

    def release(self) -> None:
        """Free what the engines no longer read; comes after all have loaded."""
        ...


class WeightReceiver(Protocol):
    """A rollout actor's end of a transport."""

    def receive(
        self, update: WeightUpdate, held: frozenset[str]
    ) -> AbstractContextManager[tuple[bytes, ...]]:
        """What the engine's workers get, one `update_weights` call each, valid while the context is open.

        `held` has the digests of the frozen buckets that the engine holds.
        """
        ...
