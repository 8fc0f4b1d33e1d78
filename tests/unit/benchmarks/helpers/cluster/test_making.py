"""Models and questions that a cluster's benchmark makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from benchmarks.helpers.cluster import making
from benchmarks.helpers.cluster.making import make_model, make_what_is_missing
from benchmarks.helpers.cluster.settings import Plan, make_plan
from medr1_ray.data.dataset import open_dataset
from medr1_ray.model.folder.check import check_model
from medr1_ray.model.vocabulary import STOP_TOKENS, load_vocabulary
from tests.repository import REPOSITORY

TINY = REPOSITORY / "configs" / "phantom_cpu.yaml"
MODELS = REPOSITORY / "configs" / "models"


def smaller(name: str, folder: Path) -> Path:
    """A published shape with fewer and narrower layers, but for its head of three rotary sections."""
    shape: dict[str, Any] = json.loads((MODELS / name / "config.json").read_text())
    shape |= {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1, "max_window_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"vocab_size": 2000, "bos_token_id": 1643, "eos_token_id": 1645}
    shape["vision_config"] |= {"depth": 1, "out_hidden_size": 256}
    if name == "qwen2_vl_2b":
        shape["vision_config"] |= {"hidden_size": 256, "embed_dim": 64, "num_heads": 2}
    else:
        shape["vision_config"] |= {"hidden_size": 64, "num_heads": 2, "fullatt_block_indexes": [0]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def plan_of(tmp_path: Path, *given: str) -> Plan:
    return make_plan([TINY], [f"run.dir={tmp_path / 'out'}", *given], 0, 3)


@pytest.mark.parametrize("name", ["qwen2_vl_2b", "qwen2_5_vl_3b"])
def test_a_made_model_of_either_family_passes_the_checks_of_a_start(name: str, tmp_path: Path) -> None:
    shape = smaller(name, tmp_path / "shape")
    plan = plan_of(tmp_path, f"model.shape={shape}", "data.image_size=560")
    make_model(shape, tmp_path / "out" / "model")
    check_model(plan.config)
    vocabulary = load_vocabulary(tmp_path / "out" / "model")
    known = AutoTokenizer.from_pretrained(tmp_path / "out" / "model").get_vocab()
    assert sorted(known.values()) == list(range(2000))
    # What would end a completion is never sampled, so that all have the full length.
    assert {known[token] for token in STOP_TOKENS} <= set(vocabulary.banned)
    config = AutoConfig.from_pretrained(tmp_path / "out" / "model")
    ends = {config.get_text_config().eos_token_id, getattr(config, "eos_token_id", None)} - {None}
    assert ends == {known[STOP_TOKENS[0]]}


def test_made_weights_are_random_and_norms_leave_their_input_alone(tmp_path: Path) -> None:
    make_model(smaller("qwen2_vl_2b", tmp_path / "shape"), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for name, tensor in weights.items():
        assert tensor.dtype == torch.bfloat16
        if tensor.ndim > 1:
            assert tensor.float().std().item() == pytest.approx(0.02, rel=0.1)
            assert tensor.float().mean().abs().item() < 0.002
        else:
            assert (tensor == (1.0 if name.endswith("weight") else 0.0)).all()


def test_questions_can_be_read_and_are_kept_for_the_next_time(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    make_what_is_missing(plan)
    dataset = open_dataset(plan.config.data)
    assert len(dataset.train) > 400
    assert dataset.dropped == ()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    make_what_is_missing(plan)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == made


def test_nothing_is_made_where_the_user_gives_both(tmp_path: Path) -> None:
    make_what_is_missing(plan_of(tmp_path, "model.path=tiny", f"data.root={tmp_path}"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_of_another_shape_is_refused_and_one_that_was_cut_off_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, folder: Path) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(making, "make_model", full)
        with pytest.raises(OSError, match="No space left"):
            make_what_is_missing(plan_of(tmp_path))
    make_what_is_missing(plan_of(tmp_path))
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    other = plan_of(tmp_path, f"model.shape={smaller('qwen2_vl_2b', tmp_path / 'shape')}")
    with pytest.raises(ValueError, match=r"model was made of another shape than model\.shape=.*or delete"):
        make_what_is_missing(other)
