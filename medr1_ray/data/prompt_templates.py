"""Texts of prompts, in the wording of `prompt.*`, and of the completions that supervised training imitates."""

from __future__ import annotations

from medr1_ray.config import PromptSettings
from medr1_ray.types import Mode, Question

MEDR1_WORDING = PromptSettings()
"""The wording by default."""

TARGETS: dict[Mode, str] = {
    "think": "<think></think><answer>{letter}</answer>",
    "no_think": "<answer>{letter}</answer>",
    "think_after": "<answer>{letter}</answer><think></think>",
}
"""Targets of supervised training.

No supported dataset contains reasoning and none is made up, so the thinking part is present but empty and only the
answer is learned. The reward `format` does not accept an empty thinking part; `medr1_format` does.
"""


def target_text(question: Question, mode: Mode) -> str:
    """Return the completion that supervised training imitates."""
    return TARGETS[mode].replace("{letter}", question.gold_letter)


def user_text(question: Question, mode: Mode, prompt: PromptSettings = MEDR1_WORDING) -> str:
    """Return the text of the user's turn, after the image."""
    # Not `str.format`: a question may contain braces.
    return prompt.templates[mode].replace("{question}", question.text)


def chat_of(text: str, system: str | None = None) -> list[dict[str, object]]:
    """Return a chat of one user turn (image, then text) in the form that Qwen's chat template takes."""
    turn: dict[str, object] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    if system is None:
        return [turn]
    return [{"role": "system", "content": [{"type": "text", "text": system}]}, turn]


def chat_messages(question: Question, mode: Mode, prompt: PromptSettings = MEDR1_WORDING) -> list[dict[str, object]]:
    """Return the chat of one user turn that asks `question`."""
    return chat_of(user_text(question, mode, prompt), prompt.system)
