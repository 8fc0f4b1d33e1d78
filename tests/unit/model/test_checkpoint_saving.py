"""A saved checkpoint is its source with other weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from medr1_ray.config import ModelSettings
from medr1_ray.model.checkpoint_files import checkpoint_tensors, load_model
from medr1_ray.model.checkpoint_saving import rehearse_save, save_model
from medr1_ray.model.family import checkpoint_name
from medr1_ray.model.folder.check import check_folder
from tests.unit.model.model_folders import (
    change_json,
    change_weights,
    in_shards,
    template_in_json_only,
    tiny_in,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_in(tmp_path / "source")


def trained(source: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights of a model that was loaded for training, each changed."""
    model = load_model(source, dtype, ModelSettings())
    return {checkpoint_name(name): (parameter.detach() + 1).clone() for name, parameter in model.named_parameters()}


def saved(source: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder = source.parent / "saved"
    folder.mkdir()
    save_model(weights, source, folder)
    check_folder(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}


def test_all_but_the_weights_is_copied_as_it_is(source: Path) -> None:
    # What transformers refuses to write, a configuration that it would rewrite, and a template for the processor alone.
    odd = '{"do_sample": false, "temperature": 0.01}'
    (source / "generation_config.json").write_text(odd)
    change_json(source / "config.json", lambda config: config.update(rope_scaling={"type": "mrope"}, of_theirs=1))
    template = template_in_json_only(source)
    (source / "LICENSE").write_text("theirs")
    before = files(source)
    ours = ("state.json", "manifest.json", "medr1_ray.json")
    for name in ("README.md", *ours, "optimizer.pt", "pytorch_model.bin", ".hidden"):
        (source / name).write_text("describes the source, or is large")
    folder = saved(source, trained(source))
    assert files(folder) == {name: content for name, content in before.items() if name != "README.md"}
    assert AutoProcessor.from_pretrained(folder).chat_template == template


def names_of_transformers(folder: Path) -> None:
    """Give a part of the weights the names that transformers' modules have."""
    change_weights(folder, lambda w: w.update({f"model.{name}": w.pop(name) for name in list(w) if name[0] == "v"}))


@pytest.mark.parametrize("layout", [lambda folder: None, in_shards, names_of_transformers])
def test_weights_have_the_files_and_names_of_the_source(source: Path, layout: Callable[[Path], None]) -> None:
    layout(source)
    given = trained(source)
    folder = saved(source, given)
    for file in source.glob("*.safetensors"):
        before, after = load_file(file), load_file(folder / file.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, given[checkpoint_name(name)]) for name, tensor in after.items())
        with safe_open(file, "pt") as ours, safe_open(folder / file.name, "pt") as theirs:
            assert ours.metadata() == theirs.metadata()
    index = "model.safetensors.index.json"
    assert (folder / index).exists() == (source / index).exists()
    if (source / index).exists():
        assert (folder / index).read_bytes() == (source / index).read_bytes()
    loaded, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, given[checkpoint_name(name)]), name


@pytest.mark.parametrize("keys", [("dtype",), ("torch_dtype",)])
def test_weights_trained_in_another_type_change_the_types_name_alone(source: Path, keys: tuple[str, ...]) -> None:
    def named(config: dict[str, Any]) -> None:
        del config["dtype"]
        config.update(dict.fromkeys(keys, "float32"))
        config["text_config"].update(dict.fromkeys(keys, "float32"))

    change_json(source / "config.json", named)
    in_shards(source)
    folder = saved(source, trained(source, torch.bfloat16))
    before, after = (json.loads((each / "config.json").read_text()) for each in (source, folder))
    for section in (after, after["text_config"]):
        for key in keys:
            assert section.pop(key) == "bfloat16"
    for section in (before, before["text_config"]):
        for key in keys:
            del section[key]
    assert before == after
    sizes = [
        json.loads((each / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
        for each in (source, folder)
    ]
    assert sizes[0] == 2 * sizes[1]
    assert {tensor.dtype for _, tensor in checkpoint_tensors(folder)} == {torch.bfloat16}


@pytest.mark.parametrize("its_own", [True, False])
def test_a_head_beside_a_tied_embedding_is_saved_by_the_rule_of_the_libraries(source: Path, its_own: bool) -> None:
    def add_head(weights: dict[str, torch.Tensor]) -> None:
        head = weights["model.embed_tokens.weight"].clone()
        head[0, 0] += its_own
        weights["lm_head.weight"] = head

    change_weights(source, add_head)
    given = trained(source)
    assert ("lm_head.weight" in given) == its_own, "transformers 5 ties a head that equals the embedding, no other"
    folder = saved(source, given)
    # The engine expects what the learner sends, and so what an evaluation of the checkpoint sends.
    assert dict(checkpoint_tensors(folder)).keys() == given.keys()
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head, given["lm_head.weight" if its_own else "model.embed_tokens.weight"])
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert (loaded.lm_head.weight is not loaded.get_input_embeddings().weight) == its_own


def test_a_rehearsal_writes_what_a_save_does(source: Path, tmp_path: Path) -> None:
    in_shards(source)
    rehearsed = tmp_path / "rehearsed"
    rehearsed.mkdir()
    rehearse_save(source, rehearsed)
    folder = saved(source, trained(source))
    assert {path.name for path in rehearsed.iterdir()} == {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in rehearsed.glob("*.safetensors")) < 50_000
