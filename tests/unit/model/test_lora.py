"""Adapters: which layers have them, disabling them, merging them, and saving them for peft."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medr1_ray.config import LoraSettings, ModelSettings, tiny_model_path
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.lora import Adapters

SETTINGS = LoraSettings(rank=4, alpha=8)
LAYER = "model.language_model.layers.1.mlp.up_proj"


def with_adapters(dtype: torch.dtype = torch.float32, vision: bool = True, seed: int = 0) -> tuple[Any, Adapters]:
    model = load_model(tiny_model_path(), dtype, ModelSettings())
    return model, Adapters(model, SETTINGS, vision=vision, seed=seed)


def copied(adapters: Adapters) -> dict[str, Tensor]:
    return {name: factor.detach().clone() for name, factor in adapters.factors()}


def merged(adapters: Adapters) -> dict[str, Tensor]:
    weights = ((name, parameter.detach()) for name, parameter in adapters.named_parameters())
    return dict(adapters.merged(weights, copied(adapters)))


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
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(found[name])
    torch.testing.assert_close(output(plain), output(model), rtol=1e-4, atol=1e-4)
    assert (output(model) - start).abs().max() > 0.01
    with adapters.off():
        torch.testing.assert_close(output(model), start, rtol=0, atol=0)
    assert (output(model) - start).abs().max() > 0.01
    assert len(trained_names(model)) == 2 * 42, "they learn again"


def test_merging_by_hand() -> None:
    model, adapters = with_adapters()
    start = model.get_parameter(f"{LAYER}.base_layer.weight").detach().clone()
    a, b = factors(model, LAYER)
    assert (a.shape, b.shape) == ((4, 128), (384, 4))
    # Column 1 of B says how much of row 1 of A each output gets: only output 3, and a half. Times alpha / rank = 8 / 4
    # it is the row itself.
    with torch.no_grad():
        b[3, 1] = 0.5
        a[1] = torch.arange(128.0)
    found = merged(adapters)[f"{LAYER}.weight"] - start
    torch.testing.assert_close(found[3], torch.arange(128.0))
    assert found[:3].count_nonzero() == found[4:].count_nonzero() == 0


def test_merging_keeps_what_bfloat16_would_lose() -> None:
    model, adapters = with_adapters(torch.bfloat16)
    a, b = factors(model, LAYER)
    assert a.dtype == torch.bfloat16
    # The change is 2 * 2**-12; the neighbours of 1 are 2**-7 and 2**-8 away.
    with torch.no_grad():
        model.get_parameter(f"{LAYER}.base_layer.weight")[0, 0] = 1.0
        a[0, 0] = 1.0
        b[0] = torch.tensor([2.0**-12, 0.0, 0.0, 0.0])
    found = merged(adapters)
    assert found[f"{LAYER}.weight"][0, 0].item() == 1 + 2**-11
    # All of it in one type, so that the configuration can name it.
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_factors_go_by_the_names_of_their_layers() -> None:
    model, adapters = with_adapters(torch.bfloat16)
    found = copied(adapters)
    assert len(found) == 2 * (28 + 14)
    a, b = factors(model, LAYER)
    assert torch.equal(found[f"{LAYER}.lora_A.weight"], a)
    assert torch.equal(found[f"{LAYER}.lora_B.weight"], b)


def test_saved_adapters_are_those_that_peft_loads(tmp_path: Path) -> None:
    import peft

    model, adapters = with_adapters()
    with torch.no_grad():
        for name in trained_names(model):
            model.get_parameter(name).normal_(std=0.02)
    adapters.save(copied(adapters), tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    start = load_model(tiny_model_path(), torch.float32, ModelSettings())
    loaded = peft.PeftModel.from_pretrained(start, tmp_path / "adapter")
    expected, found = dict(model.named_parameters()), dict(loaded.base_model.model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"model\.lora needs the package peft .*medr1_ray\[lora\]"):
        with_adapters()
