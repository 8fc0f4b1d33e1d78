"""Demonstrations: the correct completions as token ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.data.demonstrations import Teacher, require_room_for_an_answer
from medr1_ray.data.prompt_templates import target_text
from medr1_ray.types import Mode, Prompt, Question

QUESTION = Question("q", "/q.png", "Which?", ("x", "y", "z"), 1, "CT", "Disease Diagnosis", "none")
MODES: tuple[Mode, ...] = ("think", "no_think", "think_after")


@pytest.mark.parametrize("mode", MODES)
def test_a_demonstration_is_the_target_and_the_end_of_the_turn(mode: Mode) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    teacher = Teacher.from_checkpoint(str(tiny_model_path()), mode, max_tokens=20)
    prompt = Prompt("p", QUESTION, np.arange(4, dtype=np.int32), np.zeros((28, 28, 3), np.uint8))
    [(same, completions)] = teacher.demonstrate([prompt], visual_tokens=9)
    assert same is prompt
    assert tokenizer.decode(completions.token_ids) == target_text(QUESTION, mode) + "<|im_end|>"
    assert completions.lengths.tolist() == [completions.token_ids.size]
    assert completions.visual_tokens == 9
    # No policy sampled them: no importance ratio can be computed from these by mistake.
    assert np.isnan(completions.rollout_logprobs).all()
    assert completions.versions.tolist() == [-1] * completions.token_ids.size
    assert completions.rollout_logprobs.size == completions.token_ids.size
    assert completions.truncated.tolist() == [False]


@pytest.mark.parametrize(
    "stored",
    [
        {"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<|endoftext|>"}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
    ],
)  # fmt: skip
def test_the_room_for_an_answer_does_not_depend_on_what_a_training_filled_texts_up_to(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    """transformers stores both in tokenizer.json and sets them anew in each call."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path(), folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **stored}))

    def config(max_tokens: int) -> Config:
        given = {"run": {"dir": "x"}, "data": {"format": "phantoms", "root": "x"}, "train": {"steps": 1}}
        rollout = {"max_tokens": max_tokens}
        return Config.model_validate({**given, "mode": "no_think", "model": {"path": str(folder)}, "rollout": rollout})

    require_room_for_an_answer(config(4))
    with pytest.raises(ValueError, match=r"and the end of the turn are 4 tokens; use at least 4$"):
        require_room_for_an_answer(config(3))


def test_a_target_that_could_not_be_given_is_refused() -> None:
    prompt = Prompt("p", QUESTION, np.arange(4, dtype=np.int32), np.zeros((28, 28, 3), np.uint8))
    teacher = Teacher(lambda text: [5] * 7, 2, "no_think", max_tokens=7)
    with pytest.raises(ValueError, match=r"rollout\.max_tokens=7.*has 8 tokens"):
        teacher.demonstrate([prompt], visual_tokens=9)
    [(_, completions)] = Teacher(lambda text: [5] * 7, 2, "no_think", max_tokens=8).demonstrate([prompt], 9)
    assert completions.token_ids.tolist() == [5] * 7 + [2]
