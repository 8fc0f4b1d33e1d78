"""Checkpoint folders are found, told apart and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medr1_ray.config import ModelSettings, tiny_model_path
from medr1_ray.model.checkpoint_files import (
    checkpoint_digest,
    checkpoint_tensors,
    is_frozen,
    load_model,
    resolve_checkpoint,
)
from medr1_ray.model.family import checkpoint_name
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
    ("tied", "head", "sent"),
    [(True, [[1.0], [2.0]], False), (True, [[1.0], [3.0]], True), (False, [[1.0], [2.0]], True), (True, None, False)],
)
def test_a_head_is_sent_unless_it_is_the_embedding(
    tmp_path: Path, tied: bool, head: list[list[float]] | None, sent: bool
) -> None:
    weights = {"model.embed_tokens.weight": torch.tensor([[1.0], [2.0]]), "visual.a": torch.zeros(1)}
    weights |= {} if head is None else {"lm_head.weight": torch.tensor(head)}
    folder = checkpoint_in(tmp_path / "a", {"tie_word_embeddings": tied}, **weights)
    found = {name: tensor.tolist() for name, tensor in checkpoint_tensors(folder)}
    assert found.pop("lm_head.weight", None) == (head if sent else None)
    assert found == {"model.embed_tokens.weight": [[1.0], [2.0]], "visual.a": [0.0]}


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
