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
    """The learner's parameters under their checkpoint names: the `frozen` ones, or the others.

    Iterating over `tensors` gathers shards, so all ranks must do it together. A tensor is whole only until the next one
    is requested. `specs` are the same parameters in the same order, without gathering; their offsets are 0.
    """

    def specs(self, *, frozen: bool) -> list[TensorSpec]: ...

    def tensors(self, *, frozen: bool) -> Iterator[tuple[str, torch.Tensor]]: ...


class WeightSender(Protocol):
    """A learner rank's end of a transport. Every rank calls the same methods in the same order."""

    def publish(self, source: WeightSource, version: int, *, to_newcomers: bool) -> WeightUpdate | None:
        """Make the parameters available as this policy version; returns what the engines need to load it, or None on
        ranks that leave that to rank 0.

        A transport may leave frozen parameters out where every engine holds them already (not `to_newcomers`).
        """
        ...

    def send(self) -> None:
        """Move the bytes, where that needs both ends at once; called after `publish`, while the engines receive."""
        ...

    def release(self) -> None:
        """Free what was published, after all engines have loaded it; only where they share its GPUs."""
        ...


class WeightReceiver(Protocol):
    """A rollout actor's end of a transport."""

    def receive(
        self, update: WeightUpdate, held: frozenset[str]
    ) -> AbstractContextManager[tuple[bytes, ...]]:
        """The payloads for the engine's workers, one `update_weights` call each, valid while the context is open.

        `held` are the digests of the frozen buckets that the engine holds.
        """
        ...
