"""Our part of vLLM's engine process: a weight-transfer backend that loads a staged update.

vLLM imports this module by its path (`worker_extension_cls`) before it creates the transfer engine, so the backend
is there in every worker, also where the code came by `ray job submit --working-dir` and is not installed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import (
    _place_kernel_tensors,
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from medr1_ray.code_digest import code_digest
from medr1_ray.types import WeightUpdate
from medr1_ray.weight_sync import StagedUpdate, open_staged, read_bucket

BACKEND = "medr1_ray"
EXTENSION = "medr1_ray.vllm_plugin.WorkerExtension"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every update says where it lies."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """A pickled `StagedUpdate`: vLLM's own encoding would turn the dataclasses into dicts."""

    staged: bytes


class StagedWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads a whole policy version from this node's file. Digest, names and shapes are checked before a change."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        self._expected = _expected_shapes(Path(self.model_config.model), model)

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Part of vLLM's interface: there is no connection to make."""

    def start_weight_update(self) -> None:
        """Part of vLLM's interface: the model is opened for loading once the update has been checked."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Check the update and load it.

        Raises:
            WeightDigestError: the bytes are not the learner's; the model is unchanged.
            ValueError: a parameter is missing, unknown, or of another shape; the model is unchanged.
        """
        staged: StagedUpdate = pickle.loads(update_info.staged)
        buckets = open_staged(staged)
        self._check(staged.update)
        initialize_layerwise_reload(self.model)
        self.model.load_weights(named for bucket, buffer in buckets for named in read_bucket(buffer, bucket))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # A head that shares the embedding's weights is no receiver of its own, so the reload leaves its packed copy
        # (which a CPU computes with) as it was.
        for head in _heads(self.model):
            head.quant_method.process_weights_after_loading(head)

    def abandon(self) -> None:
        """Close a load that broke off, if one did: else the next would go on with its half-filled layers.

        The weights are a mixture then, until a whole update has been loaded.
        """
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                _place_kernel_tensors(layer, info)
                info.reset()

    def shutdown(self) -> None:
        """Part of vLLM's interface: nothing is held between updates."""

    def _check(self, update: WeightUpdate) -> None:
        specs = [spec for bucket in update.buckets for spec in bucket.tensors]
        found = {_engine_name(self.model, spec.name): spec.shape for spec in specs}
        problems = [
            *(f"{name} is missing" for name in sorted(self._expected.keys() - found.keys())),
            *(f"{name} is not a parameter of the model" for name in sorted(found.keys() - self._expected.keys())),
            *(
                f"{name} has shape {found[name]}, the model's is {shape}"
                for name, shape in sorted(self._expected.items())
                if name in found and found[name] != shape
            ),
        ]
        if len(found) < len(specs):
            problems.append(f"{len(specs) - len(found)} parameters come twice, under an old and a new name")
        if problems:
            raise ValueError(
                f"policy version {update.version} does not fit the engine's model {self.model_config.model} "
                f"(names as in vLLM): {'; '.join(problems[:5])}"
                + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            )


class WorkerExtension:
    """Methods that vLLM adds to its worker, for `collective_rpc`."""

    weight_transfer_engine: StagedWeightTransferEngine
    _weight_update_active: bool

    def medr1_code_digest(self) -> str:
        """The digest of the code that this engine process runs."""
        return code_digest()

    def medr1_abandon_update(self) -> None:
        """Let a new weight update begin after one that failed."""
        self._weight_update_active = False
        self.weight_transfer_engine.abandon()


def register() -> None:
    """Make the backend known to vLLM in this process; once is enough, again does no harm."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, StagedWeightTransferEngine)


def _engine_name(model: Any, name: str) -> str:
    """One name for a parameter, whichever release of transformers named it; fused layers stay apart."""
    renamed: str | None = model.hf_to_vllm_mapper.get_rename_mapper().map_name(name)
    return renamed or name


def _expected_shapes(checkpoint: Path, model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes that an update must have: those of the checkpoint, less a head that is tied."""
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model.path={str(checkpoint)!r} holds no *.safetensors; weight sync needs a local checkpoint folder in "
            "that format"
        )
    own = {name for name, _ in model.named_parameters()}
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - own
    shapes = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                shapes[_engine_name(model, name)] = tuple(tensors.get_slice(name).get_shape())
    return {name: shape for name, shape in shapes.items() if name not in aliases}


def _heads(model: torch.nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, ParallelLMHead))


register()
