"""The token ids that the engine and the learner must treat alike: banned ones, and those that end a completion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BANNED_LOGIT_BIAS = -100.0
"""Added to the logits of banned tokens before the temperature, by the engine and by the learner alike."""

STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Vocabulary:
    """Special ids of a Qwen2-VL or Qwen2.5-VL checkpoint.

    `size` is the number of logits (the embedding's rows, which may exceed the tokenizer's tokens); `banned` are
    tokens that would make the next forward pass look for an image and so are never sampled; `stop` end a
    completion and belong to it. `pad` is also a stop token: masks come from lengths, never from ids.
    """

    size: int
    image_pad: int
    vision_start: int
    banned: tuple[int, ...]
    stop: tuple[int, ...]
    pad: int

    @property
    def logit_bias(self) -> dict[int, float]:
        """For `vllm.SamplingParams(logit_bias=...)`; the learner adds the same."""
        return dict.fromkeys(self.banned, BANNED_LOGIT_BIAS)


def load_vocabulary(path: str | Path) -> Vocabulary:
    """Read the ids from a checkpoint folder's config and tokenizer.

    Raises ValueError where the model has no image tokens or the tokenizer lacks a stop token.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    missing = [name for name in names if getattr(config, name, None) is None]
    if missing:
        raise ValueError(
            f"model.path={str(path)!r}: its config.json (model_type {config.model_type!r}) lacks {missing[0]}; "
            "use a Qwen2-VL or Qwen2.5-VL checkpoint"
        )
    image, video, start, end = (int(getattr(config, name)) for name in names)
    known = AutoTokenizer.from_pretrained(path).get_vocab()
    for token in STOP_TOKENS:
        if token not in known:
            raise ValueError(
                f"model.path={str(path)!r}: its tokenizer lacks {token!r}, which ends a completion; use the "
                "tokenizer of a Qwen2-VL or Qwen2.5-VL checkpoint"
            )
    stop = tuple(int(known[token]) for token in STOP_TOKENS)
    return Vocabulary(
        size=int(config.get_text_config().vocab_size),
        image_pad=image,
        vision_start=start,
        banned=(image, video, start, end),
        stop=stop,
        pad=stop[1],
    )
