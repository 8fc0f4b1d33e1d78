"""Adapters in vLLM's layers, without an engine: one worker, or the parts of two that share the layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from vllm.model_executor.layers import linear as layers
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from medr1_ray.weights.engine.adapters import add_adapters
from medr1_ray.weights.messages import ADAPTERS

RANK, ALPHA, HEADS, KEY_HEADS, HEAD = 2, 6, 4, 2, 8
WIDTH, INNER = HEADS * HEAD, 24
# Inputs and outputs of the layers, by their names in a checkpoint.
SIZES = {
    "language_model.q_proj": (WIDTH, HEADS * HEAD),
    "language_model.k_proj": (WIDTH, KEY_HEADS * HEAD),
    "language_model.v_proj": (WIDTH, KEY_HEADS * HEAD),
    "language_model.o_proj": (WIDTH, WIDTH),
    "language_model.gate_proj": (WIDTH, INNER),
    "language_model.up_proj": (WIDTH, INNER),
    "language_model.down_proj": (INNER, WIDTH),
    "visual.qkv": (WIDTH, 3 * WIDTH),
    "visual.proj": (WIDTH, WIDTH),
}
SHAPES = {f"{name}.weight": (outputs, inputs) for name, (inputs, outputs) in SIZES.items()}


class Tower(nn.Module):
    """A layer of each kind, with the names that vLLM gives them."""

    def __init__(self, vision: bool) -> None:
        super().__init__()
        make = {"bias": False, "return_bias": False}
        if vision:
            self.qkv = layers.QKVParallelLinear(WIDTH, HEAD, HEADS, **make)
            self.proj = layers.RowParallelLinear(WIDTH, WIDTH, reduce_results=False, **make)
        else:
            self.qkv_proj = layers.QKVParallelLinear(WIDTH, HEAD, HEADS, KEY_HEADS, **make)
            self.o_proj = layers.RowParallelLinear(WIDTH, WIDTH, reduce_results=False, **make)
            self.gate_up_proj = layers.MergedColumnParallelLinear(WIDTH, [INNER, INNER], **make)
            self.down_proj = layers.RowParallelLinear(INNER, WIDTH, reduce_results=False, **make)


class Model(nn.Module):
    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.language_model, self.visual = Tower(vision=False), Tower(vision=True)

    def get_mm_mapping(self) -> Any:
        return SimpleNamespace(language_model=["language_model"], tower_model=["visual."])

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        AutoWeightsLoader(self).load_weights(weights.items(), mapper=self.mapper)


def with_adapters(vision: bool = True) -> tuple[Model, dict[str, tuple[int, ...]]]:
    """A loaded model as a worker has it once vLLM has packed its weights, then its adapters and their shapes."""
    model = Model()
    record_metadata_for_reloading(model)
    model.load_weights(weights())
    for layer in model.modules():
        if isinstance(layer, layers.LinearBase):
            layer.quant_method.process_weights_after_loading(layer)
    settings = {ADAPTERS: {"rank": RANK, "alpha": ALPHA, "vision": vision}}
    return model, add_adapters(model, SimpleNamespace(additional_config=settings), SHAPES)


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def factors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def load(model: Model, tensors: dict[str, Tensor]) -> None:
    """As `CheckedLoading` does where frozen weights are not sent."""
    initialize_layerwise_reload(model)
    model.load_weights(tensors)
    finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))


def output(model: Model, path: str, x: Tensor) -> Tensor:
    found: Tensor = model.get_submodule(path)(x)
    return found


def expected(names: list[str], x: Tensor, adapters: dict[str, Tensor]) -> list[Tensor]:
    """By hand: W x + alpha / rank * B (A x) of each layer of a checkpoint."""
    start = weights()
    found = []
    for name in names:
        whole = linear(x, start[f"{name}.weight"])
        if f"{name}.lora_A.weight" in adapters:
            below = linear(x, adapters[f"{name}.lora_A.weight"])
            whole = whole + ALPHA / RANK * linear(below, adapters[f"{name}.lora_B.weight"])
        found.append(whole)
    return found


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Which worker of how many a layer believes to be on; vLLM would ask its process group."""
    place = SimpleNamespace(rank=0, of=1)
    for module in ("vllm.model_executor.layers.linear", "vllm.model_executor.parameter"):
        monkeypatch.setattr(f"{module}.get_tensor_model_parallel_rank", lambda: place.rank)
        monkeypatch.setattr(f"{module}.get_tensor_model_parallel_world_size", lambda: place.of)
    return place


FUSED = {
    "language_model.qkv_proj": ["language_model.q_proj", "language_model.k_proj", "language_model.v_proj"],
    "language_model.gate_up_proj": ["language_model.gate_proj", "language_model.up_proj"],
    "visual.qkv": ["visual.qkv"],
}
ROWS = ("language_model.o_proj", "language_model.down_proj", "visual.proj")


def test_every_layer_computes_with_its_factors_and_0_is_where_they_start() -> None:
    model, shapes = with_adapters()
    assert shapes["language_model.k_proj.lora_A.weight"] == (RANK, WIDTH)
    assert shapes["language_model.k_proj.lora_B.weight"] == (KEY_HEADS * HEAD, RANK)
    assert len(shapes) == 2 * len(SIZES)
    for adapters in ({}, factors(shapes, 1), factors(shapes, 2)):
        if adapters:
            load(model, adapters)
        for path, names in {**FUSED, **{name: [name] for name in ROWS}}.items():
            x = torch.randn(5, SIZES[names[0]][0])
            torch.testing.assert_close(output(model, path, x), torch.cat(expected(names, x, adapters), -1))


def test_a_reload_keeps_the_memory_that_compiled_graphs_read() -> None:
    model, shapes = with_adapters()
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters() if "lora" in name}
    load(model, {**weights(), **factors(shapes, 1)})
    assert places == {name: parameter.data_ptr() for name, parameter in model.named_parameters() if "lora" in name}


def test_a_compiled_graph_computes_with_the_factors_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where weights are not packed."""

    def plain(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    monkeypatch.setattr(layers, "dispatch_unquantized_gemm", lambda backend: plain)
    monkeypatch.setattr(layers.UnquantizedLinearMethod, "process_weights_after_loading", lambda self, layer: None)
    model, shapes = with_adapters()
    path = "language_model.qkv_proj"
    compiled = torch.compile(model.get_submodule(path), backend="aot_eager", fullgraph=True)
    x = torch.randn(5, WIDTH)
    for seed in (1, 2):
        load(model, factors(shapes, seed))
        with torch.compiler.set_stance("default" if seed == 1 else "fail_on_recompile"):
            torch.testing.assert_close(compiled(x), torch.cat(expected(FUSED[path], x, factors(shapes, seed)), -1))


def test_workers_that_share_layers_compute_their_parts(worker: Any) -> None:
    worker.of = 2
    models = []
    for worker.rank in range(2):
        model, shapes = with_adapters()
        load(model, factors(shapes, 1))
        models.append(model)
    adapters = factors(shapes, 1)
    x = torch.randn(5, WIDTH)
    for path, names in FUSED.items():
        # Each has one half of every part. The vision tower's three are one matrix in a checkpoint.
        wholes = expected(names, x, adapters)
        wholes = list(wholes[0].chunk(3, -1)) if path == "visual.qkv" else wholes
        for rank, model in enumerate(models):
            own = torch.cat([whole.chunk(2, -1)[rank] for whole in wholes], -1)
            torch.testing.assert_close(output(model, path, x), own)
    for name in ROWS:
        x = torch.randn(5, SIZES[name][0])
        parts = [output(model, name, part) for model, part in zip(models, x.chunk(2, -1), strict=True)]
        torch.testing.assert_close(parts[0] + parts[1], expected([name], x, adapters)[0], atol=1e-4, rtol=1e-4)


def test_a_frozen_tower_has_none() -> None:
    model, shapes = with_adapters(vision=False)
    assert not [name for name, _ in model.named_parameters() if "visual" in name and "lora" in name]
    assert not [name for name in shapes if "visual" in name]
    assert len(shapes) == 2 * 7


def test_an_engine_without_them_is_left_alone() -> None:
    model = Model()
    before = dict(model.named_parameters())
    assert add_adapters(model, SimpleNamespace(additional_config={}), SHAPES) == {}
    assert dict(model.named_parameters()).keys() == before.keys()
