"""Special tokens of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from medr1_ray.config import tiny_model_path
from medr1_ray.model.vocabulary import load_vocabulary
from tests.unit.model.model_folders import change_json, tiny_in


def test_of_the_tiny_model() -> None:
    vocabulary = load_vocabulary(tiny_model_path())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    names = {"<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}
    assert set(tokenizer.convert_ids_to_tokens(list(vocabulary.banned))) == names
    assert tokenizer.convert_ids_to_tokens(list(vocabulary.stop)) == ["<|im_end|>", "<|endoftext|>"]
    special = tokenizer.convert_ids_to_tokens([vocabulary.image_pad, vocabulary.vision_start, vocabulary.pad])
    assert special == ["<|image_pad|>", "<|vision_start|>", "<|endoftext|>"]
    assert vocabulary.size == len(tokenizer)
    # So much that no such token is ever sampled, at any temperature up to 2.
    assert vocabulary.logit_bias == dict.fromkeys(vocabulary.banned, -100.0)


@pytest.mark.parametrize(("rows", "banned"), [(911, [909, 910]), (909 + 1000, [*range(909, 1909)]), (909 + 1001, [])])
def test_logits_without_a_token_are_banned(tmp_path: Path, rows: int, banned: list[int]) -> None:
    folder = tiny_in(tmp_path / "padded")
    change_json(folder / "config.json", lambda config: config["text_config"].update(vocab_size=rows))
    vocabulary = load_vocabulary(folder)
    assert vocabulary.size == rows
    assert sorted(set(vocabulary.banned) - set(load_vocabulary(tiny_model_path()).banned)) == banned


def test_a_model_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="a model of type 'qwen2'; allowed: qwen2_vl, qwen2_5_vl"):
        load_vocabulary(tmp_path)


def test_a_tokenizer_without_a_stop_token_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "<|im_end|>": 1}))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny_model_path() / "config.json").read_text())
    with pytest.raises(ValueError, match=r"its tokenizer lacks '<\|endoftext\|>'"):
        load_vocabulary(tmp_path)
