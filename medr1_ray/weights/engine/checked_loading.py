"""What all our weight-transfer engines share: only what has been proven is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import (
    _place_kernel_tensors,
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from medr1_ray.weights.messages import WeightUpdate


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
