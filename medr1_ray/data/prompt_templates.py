"""Prompt templates of Med-R1: one per mode, shared by training, evaluation and answering.

Think and No-Think are worded as in the reference's training code (arXiv 2503.13939). Its evaluators use three other
wordings; that is a defect and is not reproduced. Think-After is described only in the journal version, so its wording
is ours, composed from the other two.
"""

from __future__ import annotations

from medr1_ray.types import Mode, Question

TEMPLATES: dict[Mode, str] = {
    "think": (
        "{question} Your task: 1. Think through the question step by step, enclose your reasoning process in "
        "<think>...</think> tags. 2. Then provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 3. No extra information or text outside of these tags."
    ),
    "no_think": (
        "{question} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 2. No extra information or text outside of this tag."
    ),
    "think_after": (
        "{question} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 2. Then explain your choice step by step, enclose your reasoning process in "
        "<think>...</think> tags. 3. No extra information or text outside of these tags."
    ),
}


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


def user_text(question: Question, mode: Mode) -> str:
    """Return the text of the user's turn, after the image."""
    # Not `str.format`: a question may contain braces.
    return TEMPLATES[mode].replace("{question}", question.text)


def user_turn(text: str) -> list[dict[str, object]]:
    """Return a chat of one user turn (image, then text) in the form that Qwen's chat template takes."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def chat_messages(question: Question, mode: Mode) -> list[dict[str, object]]:
    """Return the chat of one user turn that asks `question`."""
    return user_turn(user_text(question, mode))
