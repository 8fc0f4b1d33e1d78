"""Adapters: where they are, what the model is without them, and what merging makes of them."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medr1_ray.config import LoraSettings, ModelSettings, tiny_model_path
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.lora import Adapters

SETTINGS = LoraSettings(rank=4, alpha=8)
LAYER = "model.language_model.layers.1.mlp.up_proj"


def whole(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter.detach()) for name, parameter in named)


def with_adapters(dtype: torch.dtype = torch.float32, vision: bool = True, seed: int = 0) -> tuple[Any, Adapters]:
    model = load_model(tiny_model_path(), dtype, ModelSettings())
    return model, Adapters(model, SETTINGS, vision=vision, seed=seed)


def merged(adapters: Adapters) -> dict[str, Tensor]:
    return dict(adapters.merged(adapters.named_parameters(), whole))


def trained_names(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def factors(model: Any, layer: str) -> tuple[Tensor, Tensor]:
    parameters = dict(model.named_parameters())
    a, b = (parameters[f"{layer}.lora_{side}.default.weight"] for side in "AB")
    return a, b


def output(model: Any) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = model.model.language_model(input_ids=torch.arange(10, 20)[None]).last_hidden_state
    return hidden


def test_only_adapters_of_linear_layers_are_trained() -> None:
    model, _ = with_adapters()
    names = trained_names(model)
    assert all(".lora_" in name for name in names)
    # Two factors for each linear layer: 4 x 7 in the language model, 3 x 4 + 2 in the vision tower; not the head.
    assert len(names) == 2 * (28 + 14)
    frozen_tower, _ = with_adapters(vision=False)
    assert len(trained_names(frozen_tower)) == 2 * 28


def test_the_start_is_the_model_itself_and_the_same_for_every_rank() -> None:
    plain = load_model(tiny_model_path(), torch.float32, ModelSettings())
    model, adapters = with_adapters()
    torch.testing.assert_close(output(model), output(plain), rtol=0, atol=0)
    assert merged(adapters).keys() == dict(plain.named_parameters()).keys()
    torch.rand(3)  # whatever else has been drawn
    again, _ = with_adapters()
    other, _ = with_adapters(seed=1)
    assert torch.equal(factors(model, LAYER)[0], factors(again, LAYER)[0])
    assert not torch.equal(factors(model, LAYER)[0], factors(other, LAYER)[0])


def test_merged_weights_compute_what_the_adapters_compute() -> None:
    model, adapters = with_adapters()
    plain = load_model(tiny_model_path(), torch.float32, ModelSettings())
    start = output(plain)
    with torch.no_grad():
        for name in trained_names(model):
            if "lora_B" in name:
                model.get_parameter(name).normal_(std=0.02)
    found = merged(adapters)
    a, b = factors(model, LAYER)
    # W + alpha / rank * B A, with 8 / 4 = 2.
    expected = plain.get_parameter(f"{LAYER}.weight") + 2 * b @ a
    torch.testing.assert_close(found[f"{LAYER}.weight"], expected)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(found[name])
    torch.testing.assert_close(output(plain), output(model), rtol=1e-4, atol=1e-4)
    assert (output(model) - start).abs().max() > 0.01
    with adapters.off():
        torch.testing.assert_close(output(model), start, rtol=0, atol=0)
    assert (output(model) - start).abs().max() > 0.01
    assert len(trained_names(model)) == 2 * 42, "they learn again"


def test_merging_rounds_once_in_bfloat16() -> None:
    model, adapters = with_adapters(torch.bfloat16)
    a, b = factors(model, LAYER)
    assert a.dtype == torch.bfloat16
    with torch.no_grad():
        b.normal_(std=0.02)
    start = model.get_parameter(f"{LAYER}.base_layer.weight")
    expected = (start.float() + 2 * b.float() @ a.float()).bfloat16()
    assert torch.equal(merged(adapters)[f"{LAYER}.weight"], expected)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"model\.lora needs the package peft .*medr1_ray\[lora\]"):
        with_adapters()
