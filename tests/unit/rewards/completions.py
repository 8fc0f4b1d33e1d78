"""Questions and completions that the tests of this room share."""

from __future__ import annotations

import time
from collections.abc import Callable

from medr1_ray.types import Mode, Question

MODES: dict[str, Mode] = {"T": "think", "N": "no_think", "A": "think_after"}
MODALITY = Question(
    id="q1",
    image_path="/images/1.png",
    stem="What imaging technique was used?",
    options=("MRI", "X-Ray", "CT", "Ultrasound"),
    answer=2,
    modality="CT",
    question_type="Modality Recognition",
    dataset="test",
)


def with_options(*options: str, answer: int = 0) -> Question:
    return Question("q2", "/images/2.png", "Which?", options, answer, "CT", "Disease Diagnosis", "test")

# completion, letter, modes in which the format holds (T think, N no_think, A think_after), whether the
# reference's accuracy pays (gold is C), modes in which the reference's format pays (T or N).
COMPLETIONS: list[tuple[str, str | None, str, int, str]] = [
    # The letter, as people and models write it.
    ("<answer>C</answer>", "C", "N", 1, "N"),
    ("<answer> C </answer>", "C", "N", 1, "N"),
    ("<answer>\tC\t</answer>", "C", "N", 1, "N"),
    ("<answer>c</answer>", "C", "N", 0, "N"),
    ("<answer>(C)</answer>", "C", "N", 0, "N"),
    ("<answer>( C )</answer>", "C", "N", 0, "N"),
    ("<answer>(c)</answer>", "C", "N", 0, "N"),
    ("<answer>[C]</answer>", "C", "N", 0, "N"),
    ("<answer>C.</answer>", "C", "N", 0, "N"),
    ("<answer>C)</answer>", "C", "N", 0, "N"),
    ("<answer>C:</answer>", "C", "N", 0, "N"),
    ("<answer>C,</answer>", "C", "N", 0, "N"),
    ("<answer>(C).</answer>", "C", "N", 0, "N"),
    ("<answer>**C**</answer>", "C", "N", 0, "N"),
    ("<answer>**C.**</answer>", "C", "N", 0, "N"),
    ("<answer>`C`</answer>", "C", "N", 0, "N"),
    ('<answer>"C"</answer>', "C", "N", 0, "N"),
    ("<answer>\nC\n</answer>", "C", "N", 0, "N"),
    ("<answer>\r\nC\r\n</answer>", "C", "N", 0, "N"),
    ("<answer>\n\n  C\n\n</answer>", "C", "N", 0, "N"),
    ("<answer>A</answer>", "A", "N", 0, "N"),
    ("<answer>d</answer>", "D", "N", 0, "N"),
    # The letter with its option's text.
    ("<answer>C) CT</answer>", "C", "N", 0, "N"),
    ("<answer>C)CT</answer>", "C", "N", 0, "N"),
    ("<answer>(C) CT</answer>", "C", "N", 0, "N"),
    ("<answer>C: CT</answer>", "C", "N", 0, "N"),
    ("<answer>C. ct.</answer>", "C", "N", 0, "N"),
    ("<answer>C - CT</answer>", "C", "N", 0, "N"),
    ("<answer>C CT</answer>", "C", "N", 0, "N"),
    ("<answer>**C) CT**</answer>", "C", "N", 0, "N"),
    ("<answer>**C)** CT</answer>", "C", "N", 0, "N"),
    ("<answer>C)\nCT</answer>", "C", "N", 0, "N"),
    ("<answer>B) x-ray</answer>", "B", "N", 0, "N"),
    # The option's text alone.
    ("<answer>CT</answer>", "C", "N", 0, "N"),
    ("<answer>ct.</answer>", "C", "N", 0, "N"),
    ("<answer> X-RAY </answer>", "B", "N", 0, "N"),
    ("<answer>'Ultrasound'</answer>", "D", "N", 0, "N"),
    # No answer in the answer.
    ("<answer></answer>", None, "", 0, "N"),
    ("<answer>   </answer>", None, "", 0, "N"),
    ("<answer>\n</answer>", None, "", 0, "N"),
    ("<answer>.</answer>", None, "N", 0, "N"),
    ("<answer>**</answer>", None, "N", 0, "N"),
    ("<answer>E</answer>", None, "N", 0, "N"),
    ("<answer>Z) CT</answer>", None, "N", 0, "N"),
    ("<answer>3</answer>", None, "N", 0, "N"),
    ("<answer>С</answer>", None, "N", 0, "N"),  # noqa: RUF001  (a Cyrillic letter)
    ("<answer>PET</answer>", None, "N", 0, "N"),
    ("<answer>chest CT</answer>", None, "N", 0, "N"),
    ("<answer>Cat</answer>", None, "N", 0, "N"),
    ("<answer>CC</answer>", None, "N", 0, "N"),
    ("<answer>C3</answer>", None, "N", 0, "N"),
    # Two answers in one, or a letter against its text.
    ("<answer>C) MRI</answer>", None, "N", 0, "N"),
    ("<answer>A) CT</answer>", None, "N", 0, "N"),
    ("<answer>C or D</answer>", None, "N", 0, "N"),
    ("<answer>C, D</answer>", None, "N", 0, "N"),
    ("<answer>C/D</answer>", None, "N", 0, "N"),
    ("<answer>A B C D</answer>", None, "N", 0, "N"),
    ("<answer>A)MRI, B)X-Ray, C)CT, D)Ultrasound</answer>", None, "N", 0, "N"),
    ("<answer>MRI CT</answer>", None, "N", 0, "N"),
    ("<answer>C) CT, or maybe MRI</answer>", None, "N", 0, "N"),
    # Several answers.
    ("<answer>C</answer><answer>C</answer>", "C", "", 1, "N"),
    ("<answer>C</answer> <answer>CT</answer>", "C", "", 1, "N"),
    ("<answer>C</answer><answer>A</answer>", None, "", 1, "N"),
    ("<answer>A</answer><answer>C</answer>", None, "", 0, "N"),
    ("<answer>A</answer><answer>B</answer><answer>C</answer><answer>D</answer>", None, "", 0, "N"),
    ("<answer>C</answer><answer>PET</answer>", None, "", 1, "N"),
    ("<answer></answer><answer>C</answer>", "C", "", 0, "N"),
    ("<answer>C</answer><answer></answer>", "C", "", 1, "N"),
    # Text around.
    ("C", None, "", 0, ""),
    ("", None, "", 0, ""),
    ("The answer is C.", None, "", 0, ""),
    ("It is <answer>C</answer>", "C", "", 1, ""),
    ("x<answer>C</answer>", "C", "", 1, ""),
    ("<answer>C</answer>x", "C", "", 1, ""),
    ("<answer>C</answer> for sure", "C", "", 1, ""),
    ("<answer>C</answer>.", "C", "", 1, ""),
    (" <answer>C</answer>", "C", "N", 1, "N"),
    ("<answer>C</answer> ", "C", "N", 1, ""),
    ("\n<answer>C</answer>\n", "C", "N", 1, ""),
    # Broken and nested tags.
    ("<answer>C", None, "", 0, ""),
    ("C</answer>", None, "", 0, ""),
    ("</answer>C<answer>", None, "", 0, ""),
    ("<answer>C</answer", None, "", 0, ""),
    ("<answer>C<answer>", None, "", 0, ""),
    ("<ANSWER>C</ANSWER>", None, "", 0, ""),
    ("< answer >C</ answer >", None, "", 0, ""),
    ("<answer><answer>C</answer></answer>", "C", "", 0, "N"),
    ("<answer>A<answer>C</answer>", "C", "", 0, "N"),
    ("<answer>C</answer><answer>A", "C", "", 1, ""),
    ("<answer>C</answer></answer>", "C", "", 1, "N"),
    ("<answer><think>x</think>C</answer>", None, "", 0, "N"),
    ("<answer>C</think></answer>", None, "", 0, "N"),
    ("<answer>C<b></answer>", None, "N", 0, "N"),
    # Thinking, then the answer.
    ("<think>Bones are white.</think><answer>C</answer>", "C", "T", 1, "T"),
    ("<think>Bones are white.</think>\n<answer>C</answer>", "C", "T", 1, "T"),
    ("<think>\nBones\nare white.\n</think>\n\n<answer>\nC\n</answer>", "C", "T", 0, "T"),
    ("\n<think>x</think> <answer>C</answer>\n", "C", "T", 1, ""),
    ("<think>x</think><answer>C</answer> ", "C", "T", 1, ""),
    ("<think>x</think><answer>C) CT</answer>", "C", "T", 0, "T"),
    ("<think></think><answer>C</answer>", "C", "", 1, "T"),
    ("<think> \n </think><answer>C</answer>", "C", "", 1, "T"),
    ("<think>x</think><answer></answer>", None, "", 0, "T"),
    ("<think></think><answer></answer>", None, "", 0, "T"),
    ("<think>x</think>so<answer>C</answer>", "C", "", 1, ""),
    ("so<think>x</think><answer>C</answer>", "C", "", 1, ""),
    ("<think>x</think><answer>C</answer>so", "C", "", 1, ""),
    ("<think>x</think>C", None, "", 0, ""),
    ("<think>x</think><think>y</think><answer>C</answer>", "C", "", 1, "T"),
    ("<think>x</think><answer>C</answer><answer>A</answer>", None, "", 1, "T"),
    # Answers planted in the thinking.
    ("<think><answer>C</answer></think>", None, "", 1, ""),
    ("<think><answer>C</answer></think><answer>A</answer>", "A", "", 1, "T"),
    ("<think><answer>A</answer></think><answer>C</answer>", "C", "", 0, "T"),
    ("<think>a <answer>C</answer> b <answer>D</answer></think><answer>B</answer>", "B", "", 1, "T"),
    ("<think>a<think>b</think><answer>C</answer></think><answer>A</answer>", "A", "", 1, "T"),
    ("<think>a<think>b</think></think><answer>C</answer>", "C", "", 1, "T"),
    ("a<answer>A</answer></think><answer>C</answer>", "C", "", 0, ""),
    ("x</think><answer>C</answer>", "C", "", 1, ""),
    ("<think>x<answer></think>C</answer>", None, "", 0, ""),
    ("<answer>A</answer><think>B?</think><answer>C</answer>", None, "", 0, "N"),
    # Thinking that is never closed voids nothing; closed thinking does, wherever it began.
    ("<think>x<answer>C</answer>", "C", "", 1, ""),
    ("<think>x\n<answer>C</answer>\nso", "C", "", 1, ""),
    ("<think>a<think>b</think><answer>C</answer>", "C", "", 1, "T"),
    ("<think>a<think>b<answer>C</answer>", "C", "", 1, ""),
    ("<think>a <answer>A</answer> or <answer>C</answer>", None, "", 0, ""),
    ("<think>a<think>b<answer>A</answer></think><answer>C</answer>", "C", "", 0, "T"),
    ("<think>a<think>b<answer>C</answer></think>", None, "", 1, ""),
    ("<think>a<answer>A</answer><think>b</think><answer>C</answer>", None, "", 0, "T"),
    ("<answer>C<think>x</answer>", None, "", 0, "N"),
    ("<answer>A</answer><think>x</think></think><answer>C</answer>", "C", "", 0, "N"),
    # The prompt's own wording, quoted.
    ("<answer>...</answer><answer>C</answer>", "C", "", 0, "N"),
    ("I answer inside <answer>...</answer> tags. <answer>C</answer>", "C", "", 0, ""),
    ("<think>Tags: <think>...</think>, <answer>...</answer>.</think><answer>C</answer>", "C", "", 0, "T"),
    ("<think>I use <answer>...</answer>: <answer>C</answer>", "C", "", 0, ""),
    ("<answer>…</answer> <answer>C</answer>", "C", "", 0, "N"),
    ("<answer>C</answer><answer>...</answer>", "C", "", 1, "N"),
    ("<answer>...</answer>", None, "N", 0, "N"),
    # A letter in a circle or square is no mark, whether or not it is understood.
    *((f"<answer>{sign}</answer><answer>C</answer>", None, "", 0, "N") for sign in "🅐🅰🆎🇦➊㋐™"),
    ("<answer>ⒶⒷ</answer><answer>C</answer>", None, "", 0, "N"),
    *((f"<answer>{sign}</answer><answer>C</answer>", "C", "", 0, "N") for sign in "□●→✓*_"),
    ("<answer>(A, B, C, D,...)</answer><answer>C</answer>", None, "", 0, "N"),
    # The answer, then the thinking.
    ("<answer>C</answer><think>x</think>", "C", "A", 1, ""),
    ("\n<answer>\nC\n</answer>\n<think>\nx\n</think>\n", "C", "A", 0, ""),
    ("<answer>C</answer><think></think>", "C", "", 1, ""),
    ("<answer>C</answer><think>x", "C", "", 1, ""),
    ("<answer>C</answer>as<think>x</think>", "C", "", 1, ""),
    ("<answer>C</answer><think>or <answer>A</answer></think>", "C", "", 1, ""),
    ("<answer>C</answer><think>x</think><answer>C</answer>", "C", "", 1, "N"),
]

# What a parser that takes quadratic time chokes on, when there is a lot of it.
HOSTILE = [
    wrap.replace("{}", piece * (250_000 // len(piece)))
    for wrap in ("{}", "<think>{}</answer>", "<answer>C) {}</answer>")
    for piece in (
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "<think></think>",
        "</think><answer>",
        "<answer></answer>",
        "<answer>C</answer>",
        "<answer>A</answer>\n",
        "<",
        "</think>" + " " * 100,
        "<answer>C)",
        "( C ",
        "\u0315\u0300",
        "*C",
        "\u200b",
        "\uff23",
    )
]


def takes_linear_time(*calls: Callable[[], object]) -> bool:
    """Whether calls on a quarter of a megabyte end soon: linear ones take a tenth of a second, quadratic ones need some
    10^9 to 10^10 operations."""
    started = time.process_time()
    for call in calls:
        call()
    return time.process_time() - started < 3
