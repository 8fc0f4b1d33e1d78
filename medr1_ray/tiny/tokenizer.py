"""A small byte-level BPE with Qwen2-VL's special tokens and chat template.

Three choices differ from Qwen's, to suit a model of one to two million parameters on a CPU:

* the pre-tokenizer keeps an option's letter, its bracket and its text apart (`B`, `)`, `MRI`), so the letter is
  the same token in the prompt and in `<answer>B</answer>`, and an option of one word is one token;
* the answer tags are added tokens (not special: they must survive decoding), so an answer is four tokens;
* each constant sentence of the prompt templates is one added token, so an instruction costs five.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medr1_ray.data.prompt_templates import MEDR1_WORDING

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SYSTEM_TEXT = "You are a helpful assistant."
MAX_VOCABULARY = 1500

# The separator before an option's letter (", " or "? ") is one piece, the letter the next; every digit is a piece.
PRE_TOKENIZE = (
    r"[,.?:;!]? (?=[A-H]\))|\.\.\.| ?\p{L}+(?:-\p{L}+)*|\p{N}| ?[^\s\p{L}\p{N}]|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen2-VL-Instruct's chat template, unchanged.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def constant_phrases() -> tuple[str, ...]:
    """Return the constant sentences of the chat template and of every prompt template, between the tags."""
    phrases = [SYSTEM_TEXT]
    splitter = "|".join(re.escape(tag) for tag in TAGS)
    for template in MEDR1_WORDING.templates.values():
        for piece in re.split(splitter, template.replace("{question}", "")):
            if piece and piece not in phrases:
                phrases.append(piece)
    return tuple(phrases)


def train_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the BPE on `corpus` (texts without chat markup) and add Qwen2-VL's special tokens, tags and phrases.

    Every word that occurs at least twice becomes one token, up to a vocabulary of `MAX_VOCABULARY` tokens.
    """
    phrases = constant_phrases()
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(SPECIAL_TOKENS) - len(TAGS) - len(phrases),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in (*TAGS, *phrases)])
    extra: dict[str, Any] = {"additional_special_tokens": list(SPECIAL_TOKENS[1:])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        **extra,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a token that must exist; raise ValueError if it does not."""
    identifier = tokenizer.get_vocab().get(token)
    if identifier is None:
        raise ValueError(f"token {token!r} is not in this vocabulary; add it when training the tokenizer")
    return int(identifier)
