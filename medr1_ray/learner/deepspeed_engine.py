"""DeepSpeed: the process group, the engine around a policy, and whole parameters out of ZeRO's shards."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from medr1_ray.config import Config
from medr1_ray.model.lora import Adapters
from medr1_ray.weights.messages import TensorSpec

GATHER_BYTES = 256 * 2**20
"""Parameters gathered from their shards at once, at least one."""

LARGEST_REDUCE_BUCKET = 200_000_000


def join(address: str, rank: int, world_size: int, config: Config) -> torch.device:
    """Join the learner's process group at `address` (host:port) and return the rank's device.

    Every collective fails after `cluster.update_timeout_seconds`.
    """
    host, port = address.rsplit(":", 1)
    # DeepSpeed reads its rank from here; each rank sees one device, Ray hides the others.
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", MASTER_ADDR=host, MASTER_PORT=port
    )
    deepspeed.utils.logger.setLevel(logging.WARNING)
    on_gpu = config.learner.gpus_per_rank > 0
    # DeepSpeed compiles its shared-memory collectives here on a CPU, half a minute for what only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=config.cluster.update_timeout_seconds),
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=world_size,
    )
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def build_engine(policy: nn.Module, config: Config) -> Any:
    """A DeepSpeed engine that trains `policy` by `learner` settings.

    Raises ValueError where the optimizer is to be offloaded and there is no C++ compiler to build DeepSpeed's for it.
    """
    settings = config.learner
    sharding = settings.deepspeed.get("zero_optimization", {})
    matrices = [p for p in policy.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in policy.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    arguments: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas}
    optimizer: torch.optim.Optimizer
    if sharding.get("offload_optimizer", {}).get("device", "none") == "none":
        optimizer = torch.optim.AdamW(groups, fused=True, **arguments)
    else:
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            raise ValueError(
                f"learner.deepspeed.zero_optimization.offload_optimizer={sharding['offload_optimizer']} needs a C++ "
                f"compiler, and {compiler!r} is not on the PATH; install one (e.g. g++), or remove the setting"
            )
        optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **arguments)
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=optimizer,
        config=engine_config(config, sum(p.numel() for p in policy.parameters())),
    )
    return engine


def engine_config(config: Config, parameters: int) -> dict[str, Any]:
    """DeepSpeed's settings: the package's own, and `learner.deepspeed` over the defaults."""
    settings = config.learner
    # The learner cuts micro-batches itself and says which one is the last, so that DeepSpeed divides by nothing.
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }
    if config.model.dtype == "bfloat16":
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    sharding = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": min(parameters, LARGEST_REDUCE_BUCKET),
        **settings.deepspeed.get("zero_optimization", {}),
    }
    return {**ours, **settings.deepspeed, "zero_optimization": sharding}


class ShardedWeights:
    """A `WeightSource` over a model that DeepSpeed may have cut, with its adapters, if it has any, merged in.

    `frozen` says which parameters are, by their name in the model without adapters; `rename` gives the name in
    checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        frozen: Callable[[str], bool],
        rename: Callable[[str], str],
        adapters: Adapters | None = None,
    ) -> None:
        self._model = model
        self._frozen = frozen
        self._rename = rename
        self._adapters = adapters

    def specs(self, *, frozen: bool) -> list[TensorSpec]:
        """Names, dtypes and whole shapes, without gathering."""
        return [
            TensorSpec(
                self._rename(name),
                str(parameter.dtype).removeprefix("torch."),
                tuple(getattr(parameter, "ds_shape", parameter.shape)),
                0,
            )
            for name, parameter in self._named(frozen)
        ]

    def tensors(self, *, frozen: bool) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors, in the order of `specs`."""
        named = self._named(frozen)
        whole = self._adapters.merged(named, whole_parameters) if self._adapters else whole_parameters(named)
        for name, tensor in whole:
            yield self._rename(name), tensor

    def _named(self, frozen: bool) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in (self._adapters or self._model).named_parameters():
            if self._frozen(name) == frozen:
                yield name, parameter


def whole_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors of named parameters, gathered a bucket at a time where ZeRO-3 has cut them. Every rank
    must go through all of it; a tensor is whole only until the next is asked for."""
    for bucket in _buckets(named):
        with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
            for name, parameter in bucket:
                yield name, parameter.detach()


def _buckets(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in named:
        needed = int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()
        if bucket and size + needed > GATHER_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += needed
    if bucket:
        yield bucket
