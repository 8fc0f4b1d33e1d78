"""Checkpoint folders are found, told apart, loaded and saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from medr1_ray.config import ModelSettings, tiny_model_path
from medr1_ray.model.checkpoint_files import (
    checkpoint_digest,
    checkpoint_name,
    checkpoint_tensors,
    is_frozen,
    load_model,
    resolve_checkpoint,
    save_model,
)
from tests.unit.model.small_models import qwen2_5_vl, qwen2_vl


def checkpoint_in(folder: Path, config: dict[str, Any] | None = None, **weights: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    save_file(weights or {"a": torch.zeros(2)}, folder / "model.safetensors")
    return folder


def test_a_run_its_checkpoint_and_tiny_lead_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    for step in (5, 10):
        checkpoint_in(run / f"checkpoints/checkpoint-{step}")
    (run / "checkpoints" / "latest").write_text("checkpoint-5\n")
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("run") == run / "checkpoints/checkpoint-5"
    assert resolve_checkpoint("run/checkpoints/checkpoint-10") == run / "checkpoints/checkpoint-10"
    assert resolve_checkpoint("tiny") == tiny_model_path()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_of_a_checkpoint_is_refused(tmp_path: Path, missing: str) -> None:
    (checkpoint_in(tmp_path / "a") / missing).unlink()
    with pytest.raises(ValueError, match="is not a checkpoint: give a run's directory"):
        resolve_checkpoint(str(tmp_path / "a"))


def test_a_checkpoint_is_told_by_the_names_and_contents_of_its_weight_files(tmp_path: Path) -> None:
    first, second = checkpoint_in(tmp_path / "a"), checkpoint_in(tmp_path / "b", {"another": "config"})
    digest = checkpoint_digest(first)
    assert checkpoint_digest(second) == digest
    file = second / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint_digest(second) != digest
    (first / "model.safetensors").rename(first / "other.safetensors")
    assert checkpoint_digest(first) != digest


def test_a_digest_covers_files_that_are_read_in_several_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_in(tmp_path / "a", a=torch.arange(100.0))
    whole = checkpoint_digest(folder)
    monkeypatch.setattr("medr1_ray.model.checkpoint_files._READ_BYTES", 7)
    assert checkpoint_digest(folder) == whole


@pytest.mark.parametrize(
    ("config", "head"),
    [
        ({"tie_word_embeddings": True}, False),
        ({"text_config": {"tie_word_embeddings": True}}, False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({}, True),
    ],
)
def test_a_tied_head_is_no_parameter(tmp_path: Path, config: dict[str, Any], head: bool) -> None:
    weights = {"lm_head.weight": torch.ones(2), "model.norm.weight": torch.zeros(1)}
    folder = checkpoint_in(tmp_path / "a", config, **weights)
    save_file({"visual.a": torch.full((1,), 3.0)}, folder / "second.safetensors")
    found = {name: tensor.tolist() for name, tensor in checkpoint_tensors(folder)}
    expected = {"model.norm.weight": [0.0], "visual.a": [3.0]}
    assert found == (expected | {"lm_head.weight": [1.0, 1.0]} if head else expected)


@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
def test_checkpoint_names_are_those_of_transformers(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        expected = set(file.keys())
    assert {checkpoint_name(name) for name, _ in model.named_parameters()} == expected


def test_a_frozen_tower_learns_nothing() -> None:
    settings = ModelSettings(train_vision_tower=False)
    model = load_model(tiny_model_path(), torch.float32, settings)
    assert model.training
    of_tower = {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == of_tower
    assert {name for name, _ in model.named_parameters() if is_frozen(settings, name)} == of_tower
    assert not any(is_frozen(ModelSettings(), name) for name in of_tower)


def test_dtype_and_gradient_checkpointing_are_as_set() -> None:
    model = load_model(tiny_model_path(), torch.bfloat16, ModelSettings(gradient_checkpointing=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.is_gradient_checkpointing
    assert not load_model(tiny_model_path(), torch.float32, ModelSettings()).is_gradient_checkpointing


def test_sliding_window_is_refused(tmp_path: Path) -> None:
    model = qwen2_vl()
    model.config.text_config.layer_types = ["sliding_attention", "full_attention"]
    model.config.text_config.sliding_window = 16
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sliding-window"):
        load_model(tmp_path, torch.float32, ModelSettings())


def test_what_is_saved_is_a_checkpoint_with_the_given_weights_and_the_sources_processor(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "saved"
    source.mkdir()
    folder.mkdir()
    for file in tiny_model_path().iterdir():
        if file.suffix != ".safetensors":
            (source / file.name).write_bytes(file.read_bytes())
    # Of a checkpoint in several files: the copy has one file, and this index would send readers to files not there.
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "optimizer.pt").write_text("large, and not ours")
    model = load_model(tiny_model_path(), torch.float32, ModelSettings())
    given = {checkpoint_name(name): parameter.detach() + 1 for name, parameter in model.named_parameters()}
    save_model(model, given, source, folder)
    assert resolve_checkpoint(str(folder)) == folder
    saved = {file.name for file in folder.iterdir()}
    assert {"model.safetensors.index.json", "optimizer.pt"}.isdisjoint(saved)
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(loaded) is type(model)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, given[checkpoint_name(name)]), name
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2VLForConditionalGeneration"]
    processors = [AutoProcessor.from_pretrained(path) for path in (folder, tiny_model_path())]
    assert processors[0].chat_template == processors[1].chat_template
    assert processors[0].tokenizer.get_vocab() == processors[1].tokenizer.get_vocab()
