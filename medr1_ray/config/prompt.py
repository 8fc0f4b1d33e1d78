"""Settings of the prompts' wording; by default that of Med-R1.

Think and No-Think are worded as in the reference's training code (arXiv 2503.13939). Its evaluators use three other
wordings; that is a defect and is not reproduced. Think-After is described only in the journal version, so its wording
is ours, composed from the other two.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from medr1_ray.config.field_types import Settings
from medr1_ray.types import Mode

QUESTION = "{question}"
_PLACEHOLDER = re.compile(r"\{[a-z_]{2,}\}")


def _text(text: str, info: ValidationInfo) -> str:
    # The tokenizer would make it a special token: an image that does not exist, or the end of the turn.
    if "<|" in text:
        raise ValueError(
            f"prompt.{info.field_name}={text!r} contains '<|', with which special tokens begin; leave them out: the "
            "chat template of the model writes them"
        )
    return text


def _template(text: str, info: ValidationInfo) -> str:
    where = f"prompt.{info.field_name}={text!r}"
    if text.count(QUESTION) != 1:
        raise ValueError(
            f"{where} holds {QUESTION} {text.count(QUESTION)} times; write it once, where the question with its "
            "options belongs"
        )
    other = [found for found in _PLACEHOLDER.findall(text) if found != QUESTION]
    if other:
        raise ValueError(f"{where} holds {other[0]}; the one placeholder is {QUESTION}, the question with its options")
    return _text(text, info)


Text = Annotated[str, AfterValidator(_text)]
Template = Annotated[str, AfterValidator(_template)]


class PromptSettings(Settings):
    """The wording of prompts, in training, evaluation and answering alike.

    A template is the text of the user's turn, after the image. `{question}` stands for the question with its options:
    `stem A)x, B)y, C)z`.
    """

    system: Text | None = None
    """Text of the system's turn; default: what the model's chat template writes of its own."""
    think: Template = (
        "{question} Your task: 1. Think through the question step by step, enclose your reasoning process in "
        "<think>...</think> tags. 2. Then provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 3. No extra information or text outside of these tags."
    )
    """Template of `mode: think`."""
    no_think: Template = (
        "{question} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 2. No extra information or text outside of this tag."
    )
    think_after: Template = (
        "{question} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 2. Then explain your choice step by step, enclose your reasoning process in "
        "<think>...</think> tags. 3. No extra information or text outside of these tags."
    )

    @property
    def templates(self) -> dict[Mode, str]:
        """The template of each mode."""
        return {"think": self.think, "no_think": self.no_think, "think_after": self.think_after}
