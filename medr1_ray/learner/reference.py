"""The frozen start model that the KL is taken to, held by the learner's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medr1_ray.config import Config
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.image_patches import FrozenFeatures
from medr1_ray.model.lora import Adapters
from medr1_ray.model.packing import PackedBatch
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import Vocabulary


class Reference:
    """Scores packed batches with the weights of the checkpoint that the run started from.

    Under `reference.placement: cpu` the weights wait in main memory and visit the device for each scoring; with
    `reference.sharded` each rank keeps its part only (ZeRO-3), and all ranks must score in step. `frozen_features` are
    the policy's, where its vision tower is not trained and so is the reference's.
    """

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        config: Config,
        device: torch.device,
        frozen_features: FrozenFeatures | None = None,
    ) -> None:
        dtype = getattr(torch, config.model.dtype)
        model = load_model(path, dtype, config.model).requires_grad_(False).eval()
        features = None if config.reference.sharded else frozen_features
        self._policy: Any = Policy(model, vocabulary, config.rollout.temperature, features)
        self._device = device
        self._visits = False
        if config.reference.sharded:
            self._policy = _sharded(self._policy, config)
        elif config.reference.placement == "device":
            self._policy.to(device)
        else:
            self._visits = True

    def logprobs(self, batches: Sequence[PackedBatch]) -> list[Tensor]:
        """Log-probabilities float32 [S] of each batch, under the learner's temperature and banned tokens."""
        if self._visits:
            self._policy.to(self._device)
        with torch.no_grad():
            logprobs = [self._policy(batch.to(self._device)) for batch in batches]
        if self._visits:
            self._policy.to("cpu")
        return logprobs


class AdapterFreeReference:
    """The same of a policy with adapters, which without them is the start model: no second copy of the weights.

    Args:
        engine: the DeepSpeed engine that trains the policy; all ranks must score in step.
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


def _sharded(policy: Policy, config: Config) -> Any:
    import deepspeed

    sharding: dict[str, Any] = {"stage": 3}
    if config.reference.placement == "cpu":
        sharding["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    engine, *_ = deepspeed.initialize(
        model=policy,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": config.model.dtype == "bfloat16"},
            "zero_optimization": sharding,
            "steps_per_print": 2**31,
        },
    )
    engine.eval()
    return engine
