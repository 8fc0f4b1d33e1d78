"""Headers of weight files, read without the library that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from medr1_ray.config import tiny_model_path
from medr1_ray.model.weight_files import SINGLE_FILE, is_tied, read_header, stored_tensors, weight_files
from tests.unit.model.model_folders import change_json, in_shards, tiny_in


def test_a_header_is_read_as_the_library_reads_it() -> None:
    header = read_header(tiny_model_path() / SINGLE_FILE)
    with safe_open(tiny_model_path() / SINGLE_FILE, "pt") as file:
        expected = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        assert header.pop("__metadata__") == file.metadata()
    assert {name: tensor["shape"] for name, tensor in header.items()} == expected


def test_shards_hold_what_one_file_held(tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "a")
    whole = stored_tensors(folder)
    assert weight_files(folder) == [SINGLE_FILE]
    in_shards(folder)
    parts = stored_tensors(folder)
    assert weight_files(folder) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert {name: (of.dtype, of.shape) for name, of in parts.items()} == {
        name: (of.dtype, of.shape) for name, of in whole.items()
    }
    listed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name: of.file for name, of in parts.items()} == listed


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "a")
    in_shards(folder)
    index = folder / "model.safetensors.index.json"
    change_json(index, lambda found: found["weight_map"].update(more="model-00001-of-00002.safetensors"))
    with pytest.raises(ValueError, match=r"00001-of-00002.safetensors: lacks the tensor 'more', which model"):
        stored_tensors(folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"index.json: is not a mapping in JSON"):
        stored_tensors(folder)
    index.write_text("{}")
    for nothing in ("{}", '{"weight_map": {}}', '{"weight_map": null}'):
        index.write_text(nothing)
        with pytest.raises(ValueError, match=r"index.json: has no weight_map"):
            stored_tensors(folder)
    for given in (3, None, ["x"], ""):
        index.write_text(json.dumps({"weight_map": {"a": given}}))
        with pytest.raises(ValueError, match=r"index.json: the file of 'a' in weight_map is .*; allowed: a file"):
            stored_tensors(folder)


@pytest.mark.parametrize(
    "header",
    [
        {"a": 3},
        {"a": {"data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": []}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}},
    ],
)
def test_a_header_of_other_values_is_not_one(tmp_path: Path, header: dict[str, object]) -> None:
    text = json.dumps(header).encode()
    (tmp_path / SINGLE_FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match=r"model.safetensors: is not a safetensors file; copy or download"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        # transformers 5 takes the false at the top for a default.
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": False, "text_config": None}, False),
        ({}, False),
    ],
)
def test_the_head_is_tied_where_transformers_ties_it(tmp_path: Path, config: dict[str, object], tied: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_tied(tmp_path) is tied
