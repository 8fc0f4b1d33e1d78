"""DeepSpeed: the process group, the engine around a policy, and whole parameters out of ZeRO's shards."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from medr1_ray.cluster.local import loopback_interface
from medr1_ray.config import ClusterSettings, LearnerSettings
from medr1_ray.model.lora import Adapters
from medr1_ray.weights.messages import TensorSpec

GATHER_BYTES = 256 * 2**20
"""Parameters gathered from their shards at once, at least one."""

LARGEST_REDUCE_BUCKET = 200_000_000


def join(meeting: str, rank: int, learner: LearnerSettings, cluster: ClusterSettings) -> torch.device:
    """Join the learner's process group at `meeting` and return the rank's device.

    That is `tcp://host:port`, where torch listens on all addresses, or, for ranks on one node, `file:///path`: then
    nothing is opened beyond loopback. Every collective fails after `cluster.update_timeout_seconds`.
    """
    # DeepSpeed reads its rank from the environment; each rank sees one device, since Ray hides the others.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(learner.world_size), LOCAL_RANK="0")
    loopback = loopback_interface() if meeting.startswith("file:") else None
    if loopback:
        # gloo would listen on the address of the machine's name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    deepspeed.utils.logger.setLevel(logging.WARNING)
    on_gpu = learner.gpus_per_rank > 0
    # On a CPU init_distributed would compile DeepSpeed's shared-memory collectives: half a minute, and only inference
    # uses them.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        # DeepSpeed's own default is 10 minutes.
        timeout=timedelta(seconds=cluster.update_timeout_seconds),
        init_method=meeting,
        rank=rank,
        world_size=learner.world_size,
    )
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def build_engine(policy: nn.Module, settings: LearnerSettings, dtype: str) -> Any:
    """A DeepSpeed engine that trains `policy`, in compute type `dtype` (`model.dtype`).

    Raises ValueError where the optimizer is to be offloaded and there is no C++ compiler to build DeepSpeed's for it.
    """
    sharding = settings.deepspeed.get("zero_optimization", {})
    # Biases and norms, which are vectors, are not decayed, as in transformers' Trainer.
    matrices = [p for p in policy.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in policy.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    arguments: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas}
    optimizer: torch.optim.Optimizer
    if sharding.get("offload_optimizer", {}).get("device", "none") == "none":
        # `fused`: torch's default on a GPU, `foreach`, needs intermediate copies as large as the parameters.
        optimizer = torch.optim.AdamW(groups, fused=True, **arguments)
    else:
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            raise ValueError(
                f"learner.deepspeed.zero_optimization.offload_optimizer={sharding['offload_optimizer']} needs a C++ "
                f"compiler, and {compiler!r} is not on the PATH; install one (e.g. g++), or remove the setting"
            )
        # DeepSpeed refuses any other optimizer with offload (`zero_force_ds_cpu_optimizer`).
        optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **arguments)
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=optimizer,
        config=engine_config(settings, dtype, sum(p.numel() for p in policy.parameters())),
    )
    return engine


def engine_config(settings: LearnerSettings, dtype: str, parameters: int) -> dict[str, Any]:
    """DeepSpeed's settings: the package's own, and `learner.deepspeed` over the defaults."""
    # The learner cuts micro-batches itself and marks the last one (set_gradient_accumulation_boundary). With a batch
    # size of 1 and no accumulation DeepSpeed does not rescale the loss.
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }
    if dtype == "bfloat16":
        # DeepSpeed's default is the model's dtype. Summed in bfloat16, a micro-batch's small gradients would be rounded
        # away.
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    sharding = {
        "stage": settings.zero_stage,
        # DeepSpeed allocates the bucket in full, by default 500 million elements, which is 2 GB even for the tiny
        # model.
        "reduce_bucket_size": min(parameters, LARGEST_REDUCE_BUCKET),
        **settings.deepspeed.get("zero_optimization", {}),
    }
    # Only `zero_optimization` is merged key by key; any other key of the user's replaces ours as a whole.
    return {**ours, **settings.deepspeed, "zero_optimization": sharding}


class ShardedWeights:
    """A `WeightSource` over a model that DeepSpeed may have sharded. With adapters, these are what is trained, and all
    else is frozen.

    `frozen` says which parameters never change, by their name in the model without adapters; `rename` gives the name
    in checkpoints.
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
                # Under ZeRO-3 a parameter that is not gathered is an empty tensor; `ds_shape` has its real shape.
                tuple(getattr(parameter, "ds_shape", parameter.shape)),
                0,
            )
            for name, parameter in self._named(frozen)
        ]

    def tensors(self, *, frozen: bool) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors, in the order of `specs`."""
        for name, tensor in whole_parameters(self._named(frozen)):
            yield self._rename(name), tensor

    def factors(self) -> dict[str, Tensor]:
        """Return copies of the adapters' whole factors, on the CPU and by their names in the model; none without."""
        named = self._adapters.factors() if self._adapters else ()
        return {name: tensor.to("cpu", copy=True) for name, tensor in whole_parameters(named)}

    def merged(self, factors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield what a checkpoint without adapters holds: the whole model, in float32 where `factors` are merged in."""
        if self._adapters is None:
            yield from (named for frozen in (True, False) for named in self.tensors(frozen=frozen))
            return
        for name, tensor in self._adapters.merged(whole_parameters(self._adapters.named_parameters()), factors):
            yield self._rename(name), tensor

    def _named(self, frozen: bool) -> Iterator[tuple[str, nn.Parameter]]:
        if self._adapters is not None:
            yield from self._adapters.named_parameters() if frozen else self._adapters.factors()
            return
        for name, parameter in self._model.named_parameters():
            if self._frozen(name) == frozen:
                yield name, parameter


def whole_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors of named parameters, gathered a bucket at a time where ZeRO-3 has cut them. Every rank
    must go through all of it; a tensor is whole only until the next is asked for."""
    for bucket in _buckets(named):
        with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
            for name, parameter in bucket:
                # Inside the `with`: on leaving it DeepSpeed cuts the parameters of the bucket again.
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
