"""Tokens that suit a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.config import tiny_model_path
from medr1_ray.data.prompt_templates import MEDR1_WORDING
from medr1_ray.tiny.curriculum import POOLS, corpus
from medr1_ray.tiny.tokenizer import SPECIAL_TOKENS, TAGS, token_id, train_tokenizer

QUESTION = "What imaging modality was used? A)CT, B)MRI, C)X-ray, D)Ultrasound"


def test_special_tokens_are_qwen2_vls(tokenizer, model) -> None:
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config.image_token_id == token_id(tokenizer, "<|image_pad|>")
    ends = {token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")}
    assert set(model.generation_config.eos_token_id) == ends
    assert model.config.text_config.vocab_size == len(tokenizer)


def test_token_id_names_a_missing_token(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"'<\|nothing\|>'"):
        token_id(tokenizer, "<|nothing|>")


def test_an_answer_is_four_tokens_and_survives_decoding(tokenizer) -> None:
    ids = tokenizer("<answer>C</answer><|im_end|>")["input_ids"]
    assert ids == [token_id(tokenizer, token) for token in ("<answer>", "C", "</answer>", "<|im_end|>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<answer>C</answer>"
    assert not set(TAGS) & set(tokenizer.all_special_tokens)


def test_the_letter_is_the_same_token_in_prompt_and_answer(tokenizer) -> None:
    ids = tokenizer(QUESTION)["input_ids"]
    for letter in "ABCD":
        assert ids.count(token_id(tokenizer, letter)) == 1


def test_every_option_word_is_one_token(tokenizer) -> None:
    for pool in POOLS:
        for name in pool:
            assert len(tokenizer(f"A){name}")["input_ids"]) == 2 + len(name.split()), name


@pytest.mark.parametrize("mode", ["think", "no_think", "think_after"])
def test_instructions_are_short(tokenizer, mode) -> None:
    assert len(tokenizer(MEDR1_WORDING.templates[mode].replace("{question}", ""))["input_ids"]) <= 9


@pytest.mark.parametrize("text", ["Hällo, wörld! x\n\ny  z", "A) CT or B)MRI? 0.5 \t <tag> 医"])
def test_any_text_survives(tokenizer, text) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_training_on_the_corpus_gives_the_shipped_tokenizer(tmp_path: Path) -> None:
    """So what shapes, phantoms and lessons say is what the shipped model has learned, word for word."""
    train_tokenizer(corpus(seed=0)).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny_model_path() / "tokenizer.json").read_bytes()
