"""The correct completion of each prompt, as token ids: the targets of supervised training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from medr1_ray.config import Config
from medr1_ray.data.prompt_templates import TARGETS, target_text
from medr1_ray.model.folder.files import count_tokens
from medr1_ray.model.vocabulary import STOP_TOKENS
from medr1_ray.types import Completions, Mode, Prompt, Span

TEACHER = "teacher"
THINKING_TOKENS = 8
"""Fewest tokens that a run's limit must leave for the thinking; a sentence has more."""


class Teacher:
    """Writes the correct completion of a prompt in the form that the prompt mode asks for.

    Args:
        tokenize: maps text to token ids, adding no special tokens.
        stop: id of the token that ends a completion.
        mode: the run's prompt mode.
        max_tokens: length of the longest completion that the run allows (`rollout.max_tokens`).
    """

    def __init__(self, tokenize: Callable[[str], list[int]], stop: int, mode: Mode, max_tokens: int) -> None:
        self._tokenize = tokenize
        self._stop = stop
        self._mode = mode
        self._max_tokens = max_tokens

    @classmethod
    def from_checkpoint(cls, path: str, mode: Mode, max_tokens: int) -> Teacher:
        """Return a teacher with the tokenizer of the checkpoint folder `path`."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        # The token that ends a turn in Qwen's chat template.
        stop = int(tokenizer.convert_tokens_to_ids(STOP_TOKENS[0]))
        return cls(partial(tokenizer.encode, add_special_tokens=False), stop, mode, max_tokens)

    def demonstrate(self, prompts: Sequence[Prompt], visual_tokens: int) -> list[tuple[Prompt, Completions]]:
        """Return each prompt with its one completion, including the end-of-turn token.

        No policy sampled these completions: their log-probabilities are NaN and their versions -1, so that no
        importance ratio can be computed from them.

        Raises:
            ValueError: if a completion is longer than `rollout.max_tokens`; the model could never generate it.
        """
        return [(prompt, self._completion(prompt, visual_tokens)) for prompt in prompts]

    def _completion(self, prompt: Prompt, visual_tokens: int) -> Completions:
        started = time.time()
        text = target_text(prompt.question, self._mode)
        token_ids = np.array([*self._tokenize(text), self._stop], np.int32)
        if token_ids.size > self._max_tokens:
            raise ValueError(
                f"rollout.max_tokens={self._max_tokens}: the target {text!r}, with the end-of-turn token, "
                f"has {token_ids.size} tokens; set it to {token_ids.size} or more"
            )
        return Completions(
            prompt_id=prompt.id,
            actor=TEACHER,
            token_ids=token_ids,
            rollout_logprobs=np.full(token_ids.size, np.nan, np.float32),
            versions=np.full(token_ids.size, -1, np.int32),
            lengths=np.array([token_ids.size], np.int32),
            truncated=np.zeros(1, np.bool_),
            texts=(text,),
            visual_tokens=visual_tokens,
            span=Span(TEACHER, "demonstrate", started, time.time()),
        )


def require_room_for_an_answer(config: Config) -> None:
    """Raise ValueError if `rollout.max_tokens` is too small for an answer in the form that the mode asks for, or the
    tokenizer cannot be read. Expects a folder that `model.folder.check.check_model_files` has passed."""
    shortest = TARGETS[config.mode].replace("{letter}", "A")
    thinking = 0 if config.mode == "no_think" else THINKING_TOKENS
    # The end of the turn is a token too.
    needed = count_tokens(config.model.folder, shortest) + thinking + 1
    if config.rollout.max_tokens < needed:
        with_thinking = f" with {thinking} tokens of thinking" if thinking else ""
        raise ValueError(
            f"rollout.max_tokens={config.rollout.max_tokens} has no room for an answer of mode={config.mode}: "
            f"{shortest!r}{with_thinking} and the end of the turn are {needed} tokens; use at least {needed}"
        )
