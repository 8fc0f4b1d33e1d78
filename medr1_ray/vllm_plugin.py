"""Our part of vLLM's engine process: weight-transfer backends that load only what has been proven.

vLLM imports this module by its path (`worker_extension_cls`) before it creates the transfer engine, so the backends
are there in every worker, also where the code came by `ray job submit --working-dir` and is not installed.
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
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import (
    _place_kernel_tensors,
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from medr1_ray.code_digest import code_digest
from medr1_ray.weight_object_store import StagedUpdate, open_staged
from medr1_ray.weight_sync import read_bucket
from medr1_ray.weight_types import WeightUpdate

EXTENSION = "medr1_ray.vllm_plugin.WorkerExtension"
# By `cluster.weight_transport`: the backend's name in vLLM, and its class.
BACKENDS = {
    "object_store": ("medr1_ray_object_store", "medr1_ray.vllm_plugin", "StagedTransferEngine"),
    "nccl": ("medr1_ray_nccl", "medr1_ray.vllm_nccl", "NcclTransferEngine"),
    "ipc": ("medr1_ray_ipc", "medr1_ray.vllm_ipc", "IpcTransferEngine"),
}


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every update says where it lies."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """What a `WeightReceiver` yielded, pickled: vLLM's own encoding would turn dataclasses into dicts."""

    payload: bytes


class CheckedLoading:
    """What all our backends share: an update is checked before the model is opened, and a broken one is closed.

    Goes before one of vLLM's `WeightTransferEngine`s in a class's bases.
    """

    update_info_cls = UpdateInfo
    model: Any
    model_config: Any

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)  # type: ignore[call-arg]
        self._expected = _expected_shapes(Path(self.model_config.model), model)
        self._held: frozenset[str] = frozenset()
        self._loading: WeightUpdate | None = None

    def start_weight_update(self) -> None:
        """Part of vLLM's interface: the model is opened for loading once the update has been checked."""

    def open_for(self, update: WeightUpdate) -> None:
        """Check the names and shapes of an update, and open the model for it.

        Raises:
            ValueError: a parameter is missing, unknown, or of another shape; the model is unchanged.
        """
        self._check(update)
        self._loading = update
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Close the model; from now on it computes with the new weights.

        Raises:
            ValueError: a layer of the engine got only some of its parameters.
        """
        update = self._loading
        assert update is not None
        if not all(bucket.sent for bucket in update.buckets):
            self._refuse_torn_layers()
        self._keep_untouched_layers()
        finalize_layerwise_reload(self.model, self.model_config)
        # A head that shares the embedding's weights is no receiver of its own, so the reload leaves its packed copy
        # (which a CPU computes with) as it was.
        for head in _heads(self.model):
            head.quant_method.process_weights_after_loading(head)
        self._held = frozenset(bucket.digest for bucket in update.buckets if bucket.frozen)
        self._loading = None

    def abandon(self) -> None:
        """Close a load that broke off, if one did: else the next would go on with its half-filled layers.

        The weights are a mixture then, until a whole update has been loaded.
        """
        if self._loading is not None:
            self.forget()
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                _place_kernel_tensors(layer, info)
                info.reset()

    def forget(self) -> None:
        """The weights at hand are no longer what they were: the next update must send everything."""
        self._loading = None
        self._held = frozenset()

    def _keep_untouched_layers(self) -> None:
        """Layers of which nothing was sent go on with what they have; vLLM would warn of each."""
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load() and info.load_numel == 0 and not is_deferred_attention_layer(layer):
                _place_kernel_tensors(layer, info)
                info.reset()

    def _refuse_torn_layers(self) -> None:
        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            # A vocabulary is padded, so that it is never filled.
            if isinstance(layer, VocabParallelEmbedding) or not info.can_load():
                continue
            if 0 < info.load_numel < (info.load_numel_total or 0):
                raise ValueError(
                    f"the engine's layer {name!r} ({type(layer).__name__}) joins frozen and trained parameters; "
                    "freeze all of a layer or nothing of it"
                )

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
        problems += [
            f"frozen bucket {bucket.digest} was not sent and is not held"
            for bucket in update.buckets
            if not bucket.sent and bucket.digest not in self._held
        ]
        if len(found) < len(specs):
            problems.append(f"{len(specs) - len(found)} parameters come twice, under an old and a new name")
        if problems:
            raise ValueError(
                f"policy version {update.version} does not fit the engine's model {self.model_config.model} "
                f"(names as in vLLM): {'; '.join(problems[:5])}"
                + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            )


class StagedTransferEngine(CheckedLoading, WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads an update from this node's file. All digests are checked before the model changes."""

    init_info_cls = InitInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Part of vLLM's interface: there is no connection to make."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Check the update and load it.

        Raises:
            WeightDigestError: the bytes are not the learner's; the model is unchanged.
            ValueError: as `open_for`.
        """
        staged: StagedUpdate = pickle.loads(update_info.payload)
        buckets = open_staged(staged)
        self.open_for(staged.update)
        self.model.load_weights(named for bucket, buffer in buckets for named in read_bucket(buffer, bucket))

    def shutdown(self) -> None:
        """Part of vLLM's interface: nothing is held between updates."""


class WorkerExtension:
    """Methods that vLLM adds to its worker, for `collective_rpc`."""

    weight_transfer_engine: CheckedLoading
    _weight_update_active: bool

    def medr1_code_digest(self) -> str:
        """The digest of the code that this engine process runs."""
        return code_digest()

    def medr1_abandon_update(self) -> None:
        """Let a new weight update begin after one that failed."""
        self._weight_update_active = False
        self.weight_transfer_engine.abandon()


    def medr1_forget_weights(self) -> None:
        """The weights are about to be thrown away."""
        self.weight_transfer_engine.forget()


def register() -> None:
    """Make the backends known to vLLM in this process; once is enough, again does no harm."""
    for name, module, class_name in BACKENDS.values():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, class_name)


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
