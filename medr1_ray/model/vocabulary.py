"""What engine, learner and servers must read alike from a tokenizer: banned and stop tokens, the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medr1_ray.model.family import family_of

BANNED_LOGIT_BIAS = -100.0
"""Added to the logits of banned tokens before the temperature, in the engine and in the learner."""

IMAGE_PAD = "<|image_pad|>"
"""The token that stands for an image in a prompt."""

START_OF_TURN = "<|im_start|>"
MOST_UNNAMED = 1000
"""Of more ids without a token none is banned: vLLM takes 1,024 biases for a request."""

# The order matters: the first ends a demonstration, the second is also the pad token.
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Vocabulary:
    """Special ids of a Qwen2-VL or Qwen2.5-VL checkpoint.

    `size` is the number of logits (rows of the embedding, which may exceed the number of tokens of the tokenizer);
    `banned` tokens are never sampled: those that would make the next forward pass look for an image, the start of
    another turn, and ids that the tokenizer has no token for. `stop` tokens end a completion and are part of it. `pad`
    is also a stop token, so masks are built from lengths, never from ids.
    """

    size: int
    image_pad: int
    vision_start: int
    banned: tuple[int, ...]
    stop: tuple[int, ...]
    pad: int

    @property
    def logit_bias(self) -> dict[int, float]:
        """Biases for `vllm.SamplingParams(logit_bias=...)`; the learner adds the same."""
        return dict.fromkeys(self.banned, BANNED_LOGIT_BIAS)


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Read the ids from a checkpoint folder's config and tokenizer.

    Raises ValueError if the model has no image tokens or the tokenizer lacks a stop token.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    names = family_of(config, path).special_tokens
    missing = [name for name in names if getattr(config, name, None) is None]
    if missing:
        raise ValueError(f"{path}: its config.json lacks {missing[0]}; give a complete checkpoint")
    image, video, start, end = (int(getattr(config, name)) for name in names)
    known = AutoTokenizer.from_pretrained(path).get_vocab()
    for token in STOP_TOKENS:
        if token not in known:
            raise ValueError(
                f"{path}: its tokenizer lacks {token!r}, which ends a completion; use the "
                "tokenizer of a Qwen2-VL or Qwen2.5-VL checkpoint"
            )
    stop = tuple(int(known[token]) for token in STOP_TOKENS)
    size = int(config.get_text_config().vocab_size)
    unnamed = sorted(set(range(size)) - set(known.values()))
    others = [known[START_OF_TURN]] if START_OF_TURN in known else []
    return Vocabulary(
        size=size,
        image_pad=image,
        vision_start=start,
        banned=(image, video, start, end, *others, *(unnamed if len(unnamed) <= MOST_UNNAMED else ())),
        stop=stop,
        pad=stop[1],
    )


def chat_template(path: str | Path, tokenizer: Any) -> str | None:
    """Return the template that writes a chat: the processor's, else the tokenizer's, as servers choose it.

    Several Qwen2.5-VL folders have the one with images in `chat_template.json` alone, which only the processor reads.
    """
    from transformers import ProcessorMixin

    # Reads the files without making the processor, whose video part needs torchvision.
    template = ProcessorMixin.get_processor_dict(path)[0].get("chat_template") or tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
