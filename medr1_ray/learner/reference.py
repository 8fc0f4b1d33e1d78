"""The frozen start model that the KL is taken to, held by the learner's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medr1_ray.learner.messages import RankSettings
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.image_patches import FrozenFeatures
from medr1_ray.model.lora import Adapters
from medr1_ray.model.packing import PackedBatch
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import Vocabulary


class Reference:
    """Log-probabilities of packed batches under the weights of the checkpoint that the run started from.

    Under `reference.placement: cpu` the weights stay in main memory and move to the device for each call; with
    `reference.sharded` each rank keeps only its part (ZeRO-3), and all ranks must call in step. `frozen_features` are
    shared with the policy where the vision tower is not trained, since it is then the same in both.
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
        self._moves_for_each_call = False
        if settings.reference.sharded:
            self._policy = _sharded(self._policy, settings)
        elif settings.reference.placement == "device":
            # It stays there, so the device needs room for a second copy of the weights.
            self._policy.to(device)
        else:
            self._moves_for_each_call = True

    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """Log-probabilities float32 [S] of each batch, under the learner's temperature and banned tokens."""
        # Once for all batches, because it copies all weights to the device and back.
        if self._moves_for_each_call:
            self._policy.to(self._device)
        with torch.no_grad():
            logprobs = [self._policy(batch.to(self._device)) for batch in batches]
        if self._moves_for_each_call:
            self._policy.to("cpu")
        return logprobs


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
