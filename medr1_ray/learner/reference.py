"""The frozen start model that the KL is taken to, held by the learner's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medr1_ray.learner.messages import RankSettings
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.image_patches import FrozenFeatures
from medr1_ray.model.lora import Adapters
from medr1_ray.model.packing import PackedBatch
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import Vocabulary


class Reference:
    """Log-probabilities of packed batches under the weights of the checkpoint that the run started from.

    Under `reference.placement: cpu` the weights stay in main memory, and a copy is on the device from the first call
    until `release`; with `reference.sharded` each rank keeps only its part (ZeRO-3), and all ranks must call in step.
    `frozen_features` are shared with the policy where the vision tower is not trained, since it is then the same in
    both.
    """

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        settings: RankSettings,
        device: torch.device,
        frozen_features: FrozenFeatures | None = None,
    ) -> None:
        dtype = getattr(torch, settings.model.dtype)
        model = load_model(path, dtype, settings.model).requires_grad_(False).eval()
        # With ZeRO-3 a rank that finds an image in the cache would skip the tower while the others wait to gather its
        # shards.
        features = None if settings.reference.sharded else frozen_features
        self._policy: Any = Policy(model, vocabulary, settings.temperature, features)
        self._device = device
        self._waiting: dict[str, Tensor] | None = None
        self._visiting: dict[str, Tensor] = {}
        if settings.reference.sharded:
            self._policy = _sharded(self._policy, settings)
        elif settings.reference.placement == "device":
            # It stays there, so the device needs room for a second copy of the weights.
            self._policy.to(device)
        else:
            self._waiting = _in_main_memory(self._policy)

    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """Log-probabilities float32 [S] of each batch, under the learner's temperature and banned tokens."""
        with torch.no_grad():
            return [self._score(batch.to(self._device)) for batch in batches]

    def release(self) -> None:
        """Give back the device's memory, which an update needs."""
        self._visiting = {}

    def _score(self, batch: PackedBatch) -> Tensor:
        if self._waiting is None:
            scored: Tensor = self._policy(batch)
            return scored
        if not self._visiting:
            moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in self._waiting.items()}
            self._visiting = moved
        found: Tensor = functional_call(self._policy, self._visiting, (batch,))
        return found


class AdapterFreeReference:
    """The same for a policy with adapters, which is the start model when they are off: no second copy of the weights.

    Args:
        engine: the DeepSpeed engine that trains the policy; all ranks must call in step.
    """

    def __init__(self, engine: Any, adapters: Adapters, device: torch.device) -> None:
        self._engine = engine
        self._adapters = adapters
        self._device = device

    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """As `Reference.logprobs`."""
        self._engine.eval()
        with torch.no_grad(), self._adapters.off():
            logprobs = [self._engine(batch.to(self._device)) for batch in batches]
        self._engine.train()
        return logprobs

    def release(self) -> None:
        """As `Reference.release`: nothing, since the weights are the policy's."""


def _in_main_memory(policy: nn.Module) -> dict[str, Tensor]:
    """Return its parameters and buffers, pinned where there is a GPU: it copies them several times as fast then."""
    held = dict([*policy.named_parameters(), *policy.named_buffers()])
    if torch.cuda.is_available():
        for tensor in held.values():
            tensor.data = tensor.data.pin_memory()
    return held


def _sharded(policy: Policy, settings: RankSettings) -> Any:
    import deepspeed

    # Stages 1 and 2 divide only optimizer states and gradients, which a frozen model does not have.
    sharding: dict[str, Any] = {"stage": 3}
    if settings.reference.placement == "cpu":
        sharding["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    engine, *_ = deepspeed.initialize(
        model=policy,
        config={
            # No effect without an optimizer, but DeepSpeed refuses a config without a batch size.
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": settings.model.dtype == "bfloat16"},
            "zero_optimization": sharding,
            "steps_per_print": 2**31,
        },
    )
    engine.eval()
    return engine
