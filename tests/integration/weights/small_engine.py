"""The engine side of weight transfer around a small model, without an engine: what runs is the backends' own code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from medr1_ray.weights.buckets import tensor_spec
from medr1_ray.weights.messages import TensorSpec

Weights = dict[str, torch.Tensor]


class SmallModel(torch.nn.Module):
    """A "vision" layer, that may be frozen, and two others. Loads by name, as vLLM's models do."""

    hf_to_vllm_mapper = SimpleNamespace(get_rename_mapper=lambda: SimpleNamespace(map_name=lambda name: name))

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Linear(3, 4)
        self.first = torch.nn.Linear(4, 5)
        self.second = torch.nn.Linear(5, 300, bias=False)
        self.loads: list[list[str]] = []

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.loads.append([])
        for name, tensor in named_tensors:
            self.loads[-1].append(name)
            parameter = dict(self.named_parameters())[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)


def weights_of(seed: int) -> Weights:
    torch.manual_seed(seed)
    return {name: parameter.detach().clone() for name, parameter in SmallModel().named_parameters()}


class Source:
    """The learner's parameters as ZeRO-3 gathers them: every tensor comes in the same memory as the one before."""

    def __init__(self, weights: Weights, frozen: str = "visual.") -> None:
        self._weights = weights
        self._frozen = frozen
        self.gathered: list[str] = []

    def specs(self, *, frozen: bool) -> list[TensorSpec]:
        return [tensor_spec(name, tensor) for name, tensor in self._chosen(frozen)]

    def tensors(self, *, frozen: bool) -> Iterator[tuple[str, torch.Tensor]]:
        gathered = torch.empty(max(tensor.numel() for tensor in self._weights.values()))
        for name, tensor in self._chosen(frozen):
            self.gathered.append(name)
            yield name, gathered[: tensor.numel()].view(tensor.shape).copy_(tensor)

    def _chosen(self, frozen: bool) -> list[tuple[str, torch.Tensor]]:
        return [
            named for named in self._weights.items() if bool(self._frozen and self._frozen in named[0]) == frozen
        ]


def engine(backend: type[Any], folder: Path, rank: int = 0, ranks: int = 1) -> Any:
    """The transfer engine of worker `rank` of a tensor-parallel engine of `ranks`."""
    save_file(weights_of(0), folder / "model.safetensors")
    model = SmallModel()
    record_metadata_for_reloading(model)
    vllm_config = SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_index=0, world_size=ranks, rank=rank),
        model_config=SimpleNamespace(model=str(folder), dtype=torch.float32),
        additional_config={},
    )
    return backend(SimpleNamespace(), vllm_config, torch.device("cpu"), model)


def held(engine: Any) -> Weights:
    return {name: parameter.detach() for name, parameter in engine.model.named_parameters()}


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
