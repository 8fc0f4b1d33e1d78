"""The base of our weight-transfer engines: an update is checked before the model is opened, and closed if it broke."""

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

from medr1_ray.weights.engine.adapters import add_adapters
from medr1_ray.weights.messages import WeightUpdate


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """A payload of a `WeightReceiver`, pickled, because vLLM's own encoding would turn dataclasses into dicts."""

    payload: bytes


class CheckedLoading:
    """Mixin for weight-transfer engines; put it before one of vLLM's `WeightTransferEngine`s in a class's bases."""

    update_info_cls = UpdateInfo
    model: Any
    model_config: Any

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)  # type: ignore[call-arg]
        self._expected = _expected_shapes(Path(self.model_config.model), model)
        # Here, because vLLM makes this engine when its model is loaded and nothing is compiled yet.
        self._expected |= add_adapters(model, vllm_config, self._expected)
        self._held: frozenset[str] = frozenset()
        self._loading: WeightUpdate | None = None

    def start_weight_update(self) -> None:
        """Part of vLLM's interface; nothing to do, since `open_for` opens the model once the update has been
        checked."""

    def open_for(self, update: WeightUpdate) -> None:
        """Check the names and shapes of an update, then open the model for loading.

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
        # Only an update that leaves buckets out can fill a part of a layer.
        if not all(bucket.sent for bucket in update.buckets):
            self._refuse_torn_layers()
        self._keep_untouched_layers()
        finalize_layerwise_reload(self.model, self.model_config)
        # With tied embeddings the head is not loaded itself, so the reload leaves its packed copy (which a CPU computes
        # with) at the OLD weights: greedy output still looks right, log-probabilities are wrong.
        for head in _heads(self.model):
            head.quant_method.process_weights_after_loading(head)
        self._held = frozenset(bucket.digest for bucket in update.buckets if bucket.frozen)
        self._loading = None

    def abandon(self) -> None:
        """Close a load that was interrupted, if any; otherwise the next one would continue with its half-filled layers.

        The weights are then a mixture, until a complete update has been loaded.
        """
        # The weights of a broken load are a mixture, so the frozen ones do not count as held either.
        if self._loading is not None:
            self.forget()
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                # `initialize_layerwise_reload` would skip layers that are still open and keep what they have buffered.
                # vLLM 0.32 has no public way to close them.
                _place_kernel_tensors(layer, info)
                info.reset()

    def forget(self) -> None:
        """Note that the current weights are no longer valid: the next update must send everything."""
        self._loading = None
        self._held = frozenset()

    def _keep_untouched_layers(self) -> None:
        """Keep the weights of layers of which nothing was sent; vLLM would otherwise log a warning for each."""
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            # Attention layers stay open: `finalize_layerwise_reload` has to process them in any case.
            if info.can_load() and info.load_numel == 0 and not is_deferred_attention_layer(layer):
                _place_kernel_tensors(layer, info)
                info.reset()

    def _refuse_torn_layers(self) -> None:
        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            # vLLM pads the vocabulary, so that these layers are never completely filled.
            if isinstance(layer, VocabParallelEmbedding) or not info.can_load():
                continue
            if 0 < info.load_numel < (info.load_numel_total or 0):
                raise ValueError(
                    f"the engine's layer {name!r} ({type(layer).__name__}) fuses frozen and trained parameters; "
                    "freeze all parameters of a layer or none"
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
    """The engine's name of a parameter, whichever release of transformers named it; parts of fused layers stay
    separate."""
    renamed: str | None = model.hf_to_vllm_mapper.get_rename_mapper().map_name(name)
    return renamed or name


def _expected_shapes(checkpoint: Path, model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes that an update must have: those of the checkpoint, without a tied head."""
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model.path={str(checkpoint)!r} holds no *.safetensors; weight sync needs a local checkpoint folder in "
            "that format"
        )
    own = {name for name, _ in model.named_parameters()}
    # Second names of shared parameters, i.e. a tied head: some checkpoints store it, updates never contain it.
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - own
    shapes = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                shapes[_engine_name(model, name)] = tuple(tensors.get_slice(name).get_shape())
    return {name: shape for name, shape in shapes.items() if name not in aliases}


def _heads(model: torch.nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, ParallelLMHead))
