"""Adapters (LoRA) in the engine process: layers compute W x + scale * B (A x), as peft does in the learner.

vLLM's own LoRA is for many adapters at a time: a request names its adapter, which is read from files, and every token
gathers the factors of its own. Here there is one adapter, which all requests use and every weight sync replaces. So the
factors are parameters of their layers, and `load_weights`, the checks and the layerwise reload treat them like all
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, RowParallelLinear
from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading
from vllm.model_executor.utils import get_packed_modules_mapping

from medr1_ray.weights.messages import ADAPTERS, AdapterShape

Shapes = Mapping[str, tuple[int, ...]]


def add_adapters(model: Any, vllm_config: Any, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Add factors of value 0 to the linear layers of a model, if its engine was started with `ADAPTERS`.

    Call it after the model is loaded and before anything is compiled. `shapes` are those of the checkpoint's weights,
    by vLLM's names with parts of fused layers separate. Returns the shapes of the factors, by the same kind of names.
    """
    settings = vllm_config.additional_config.get(ADAPTERS)
    if settings is None:
        return {}
    shape = AdapterShape(**settings)
    places = model.get_mm_mapping()
    towers = (*places.language_model, *(places.tower_model if shape.vision else ()))
    fused = get_packed_modules_mapping(model)
    found: dict[str, tuple[int, ...]] = {}
    for path, layer in list(model.named_modules()):
        if not isinstance(layer, LinearBase) or not path.startswith(towers):
            continue
        # A vision tower's `qkv` is one layer in the checkpoint too.
        parent, _, name = path.rpartition(".")
        parts = [path] if f"{path}.weight" in shapes else [f"{parent}.{part}" for part in fused[name]]
        _adapt(layer, shape, len(parts))
        for part in parts:
            outputs, inputs = shapes[f"{part}.weight"]
            found[f"{part}.lora_A.weight"] = (shape.rank, inputs)
            found[f"{part}.lora_B.weight"] = (outputs, shape.rank)
    return found


def _adapt(layer: Any, shape: AdapterShape, parts: int) -> None:
    layer.lora_A = FactorA(layer, shape.rank, parts)
    layer.lora_B = FactorB(layer, shape.rank)
    with layer.lora_A.weight.device:
        for factor in (layer.lora_A, layer.lora_B):
            record_metadata_for_reloading(factor)
    widths = layer.output_partition_sizes if parts > 1 else None
    layer.quant_method = AdaptedLinear(layer.quant_method, shape.scale, shape.rank, widths)


class FactorA(nn.Module):
    """The factors A [rank, inputs] of a layer's parts, one below the other: [parts * rank, inputs of this worker]."""

    def __init__(self, layer: Any, rank: int, parts: int) -> None:
        super().__init__()
        self._rank = rank
        # A row-parallel layer has a part of the inputs on each worker; its outputs are summed after `apply`.
        self._first_input = 0
        inputs = layer.input_size
        if isinstance(layer, RowParallelLinear):
            inputs = layer.input_size_per_partition
            self._first_input = layer.tp_rank * inputs
        self.weight = _zeros(layer, parts * rank, inputs)
        self.weight.weight_loader = self._load

    def _load(self, param: Tensor, loaded_weight: Tensor, shard_id: str | int | None = None) -> None:
        place = "qkv".index(shard_id) if isinstance(shard_id, str) else shard_id or 0
        rows = param.data[place * self._rank : (place + 1) * self._rank]
        rows.copy_(loaded_weight.narrow(1, self._first_input, rows.shape[1]))


class FactorB(nn.Module):
    """The factors B [outputs, rank] of a layer's parts, one below the other: [outputs of this worker, rank]."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        outputs = getattr(layer, "output_size_per_partition", layer.output_size)
        self.weight = _zeros(layer, outputs, rank)
        # Its rows are divided among workers like those of the layer's weight, by the layer's own loader.
        self.weight.output_dim = 0
        self.weight.weight_loader = layer.weight_loader


class AdaptedLinear(LinearMethodBase):
    """A layer's way of computing, with its adapters; `widths` are the outputs of its parts where it is fused."""

    def __init__(self, inner: LinearMethodBase, scale: float, rank: int, widths: Sequence[int] | None) -> None:
        self._inner = inner
        self._scale = scale
        self._rank = rank
        self._widths = list(widths) if widths is not None else None

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        self._inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self._inner.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        # The same products and roundings, in the same order, as peft's: engine and learner must agree in bfloat16.
        below, above = linear(x, layer.lora_A.weight), layer.lora_B.weight
        if self._widths is None:
            change = linear(below, above)
        else:
            pairs = zip(below.split(self._rank, -1), above.split(self._widths), strict=True)
            change = torch.cat([linear(part, factor) for part, factor in pairs], -1)
        output: Tensor = self._inner.apply(layer, x, bias)
        return output + change * self._scale


def _zeros(layer: Any, *shape: int) -> Any:
    # Not the device of the weight itself: on a CPU that is an empty tensor by now.
    (device,) = {tensor.device for tensor in layer.parameters()}
    return nn.Parameter(torch.zeros(*shape, dtype=layer.params_dtype, device=device), requires_grad=False)
