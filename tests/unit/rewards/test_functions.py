"""Answers, formats and reward functions, against values read off each completion by hand."""

import random
import re
import sys
import time

import numpy as np
import pytest

from medr1_ray.rewards.functions import REGISTRY, parse_answer, punish_overlong, resolve, score
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
    ("<think>x<answer>C</answer>", None, "", 1, ""),
    ("<think>a<think>b</think><answer>C</answer></think><answer>A</answer>", "A", "", 1, "T"),
    ("<think>a<think>b</think></think><answer>C</answer>", "C", "", 1, "T"),
    ("<think>a<think>b</think><answer>C</answer>", None, "", 1, "T"),
    ("a<answer>A</answer></think><answer>C</answer>", "C", "", 0, ""),
    ("x</think><answer>C</answer>", "C", "", 1, ""),
    ("<think>x<answer></think>C</answer>", None, "", 0, ""),
    ("<answer>A</answer><think>B?</think><answer>C</answer>", None, "", 0, "N"),
    # The answer, then the thinking.
    ("<answer>C</answer><think>x</think>", "C", "A", 1, ""),
    ("\n<answer>\nC\n</answer>\n<think>\nx\n</think>\n", "C", "A", 0, ""),
    ("<answer>C</answer><think></think>", "C", "", 1, ""),
    ("<answer>C</answer><think>x", "C", "", 1, ""),
    ("<answer>C</answer>as<think>x</think>", "C", "", 1, ""),
    ("<answer>C</answer><think>or <answer>A</answer></think>", "C", "", 1, ""),
    ("<answer>C</answer><think>x</think><answer>C</answer>", "C", "", 1, "N"),
]


@pytest.mark.parametrize(("completion", "letter", "formats", "medr1_accuracy", "medr1_formats"), COMPLETIONS)
def test_completions(
    completion: str, letter: str | None, formats: str, medr1_accuracy: int, medr1_formats: str
) -> None:
    for key, mode in MODES.items():
        parsed = parse_answer(completion, MODALITY, mode)
        assert parsed.letter == letter
        assert (parsed.problem is None) == (letter is not None)
        assert parsed.well_formed == (key in formats)
        assert REGISTRY["accuracy"](completion, MODALITY, mode) == float(letter == "C")
        assert REGISTRY["format"](completion, MODALITY, mode) == float(key in formats)
        assert REGISTRY["medr1_accuracy"](completion, MODALITY, mode) == medr1_accuracy
        if key != "A":
            assert REGISTRY["medr1_format"](completion, MODALITY, mode) == float(key in medr1_formats)


def test_the_table_is_large_and_without_repeats() -> None:
    assert len({row[0] for row in COMPLETIONS}) == len(COMPLETIONS) >= 90


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (("Viral_Pneumonia.", "No."), "viral_pneumonia", "A"),
        (("Viral_Pneumonia.", "No."), "B) no", "B"),
        (("MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)"), "B) CT(Computed Tomography)", "B"),
        (("MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)"), "CT", None),
        # A text that starts with a letter of its own, or is one.
        (("T-cells", "B-cells", "A tumor"), "A tumor", "C"),
        (("T-cells", "B-cells", "A tumor"), "B-cells", "B"),
        (("T-cells", "A tumor", "B-cells"), "B-cells", "C"),
        (("T-cells", "B-cells", "A tumor"), "a", "A"),
        (("B", "A", "AB", "O"), "A", "A"),
        (("B", "A", "AB", "O"), "A) B", "A"),
        (("B", "A", "AB", "O"), "A) A", None),
        (("B", "A", "AB", "O"), "AB", "C"),
        (("B", "A", "AB", "O"), "O", "D"),
        # A text that two options share names neither; with its letter it does.
        (("CT", "MRI", "CT"), "CT", None),
        (("CT", "MRI", "CT"), "C) CT", "C"),
        (("CT", "MRI", "CT"), "MRI", "B"),
        # As many letters as options.
        (("Yes", "No"), "B", "B"),
        (("Yes", "No"), "C", None),
        (tuple("stuvwxyz"), "H", "H"),
        (("light  and\nelectron", "x"), "Light and electron", "A"),
    ],
)
def test_options(options: tuple[str, ...], answer: str, letter: str | None) -> None:
    assert parse_answer(f"<answer>{answer}</answer>", with_options(*options), "no_think").letter == letter


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ("C", "no <answer> tag"),
        ("<answer>C", "no closed <answer> outside the thinking"),
        ("<think><answer>C</answer></think>", "no closed <answer> outside the thinking"),
        ("<answer> </answer>", "empty answer"),
        ("<answer>A</answer><answer>C</answer>", "different answers: A, C"),
        ("<answer>PET</answer>", "'PET' names no option"),
        ("<answer>(E)</answer>", "'(E)': the letter is not offered (A-D)"),
        ("<answer>C) MRI</answer>", "'C) MRI': the letter comes with something other than its option's text"),
    ],
)
def test_problem_says_why_there_is_no_letter(completion: str, problem: str) -> None:
    assert parse_answer(completion, MODALITY, "no_think").problem == problem


REFERENCE_ACCURACY = re.compile(r"<answer>(.*?)</answer>")
REFERENCE_FORMAT: dict[Mode, re.Pattern[str]] = {
    "think": re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL),
    "no_think": re.compile(r"\s*<answer>.*?</answer>", re.DOTALL),
}


def test_medr1_rewards_equal_the_regular_expressions_of_the_reference() -> None:
    pieces = ["<think>", "</think>", "<answer>", "</answer>", "C", " C ", "A", "\n", " ", "\u2003", "x"]
    draw = random.Random(0)
    paid = 0
    for _ in range(20_000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 9)))
        match = REFERENCE_ACCURACY.search(text)
        expected = float(match is not None and match[1].strip() == "C")
        paid += int(expected)
        assert REGISTRY["medr1_accuracy"](text, MODALITY, "think") == expected, text
        for mode, pattern in REFERENCE_FORMAT.items():
            expected = float(pattern.fullmatch(text) is not None)
            paid += int(expected)
            assert REGISTRY["medr1_format"](text, MODALITY, mode) == expected, (mode, text)
    assert paid > 200


HOSTILE = [
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
]


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("wrap", ["{}", "<think>{}</answer>", "<answer>C) {}</answer>"])
def test_a_megabyte_takes_no_more_than_linear_time(piece: str, wrap: str) -> None:
    """A quadratic parser needs some 10^10 operations here: many minutes."""
    completion = wrap.replace("{}", piece * (1_000_000 // len(piece)))
    started = time.process_time()
    parse_answer(completion, MODALITY, "think")
    REGISTRY["medr1_accuracy"](completion, MODALITY, "think")
    for mode in REFERENCE_FORMAT:
        REGISTRY["medr1_format"](completion, MODALITY, mode)
    assert time.process_time() - started < 20


def test_score_weighs_and_judges_by_the_default_parser() -> None:
    texts = ("<think>x</think><answer>c</answer>", "<answer>C</answer>", "<think>x</think><answer></answer>")
    functions = resolve({"accuracy": 2.0, "medr1_accuracy": 1.0, "medr1_format": -0.5}, "think")
    rewards = score("p7", texts, MODALITY, "think", functions, "reward-0")
    assert rewards.prompt_id == "p7"
    assert rewards.names == ("accuracy", "medr1_accuracy", "medr1_format")
    assert rewards.values.dtype == rewards.total.dtype == np.float32
    assert rewards.values.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert rewards.total.tolist() == [1.5, 3.0, -0.5]
    assert rewards.correct.tolist() == [True, True, False]
    assert rewards.well_formed.tolist() == [True, False, False]
    assert rewards.answers == ("C", "C", None)
    assert (rewards.span.actor, rewards.span.phase) == ("reward-0", "reward")
    assert 0 <= rewards.span.seconds < 60


USERS_MODULE = """
def short(completion, question, mode):
    return 1.0 / (1 + len(completion))

def broken(completion, question, mode):
    return {}["mode"]

def words(completion, question, mode):
    return "good"

def nan(completion, question, mode):
    return float("nan")

def huge(completion, question, mode):
    return 10**400

constant = 3
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_rewards.py").write_text(USERS_MODULE)
    (tmp_path / "users_broken.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_rewards", raising=False)
    return "users_rewards"


def test_a_function_of_the_users(users_module: str) -> None:
    functions = resolve({f"{users_module}:short": 2.0}, "no_think")
    rewards = score("p1", ("abc", "abcdefg"), MODALITY, "no_think", functions, "r")
    assert rewards.total.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "acuracy",
            "unknown reward function 'acuracy'; did you mean 'accuracy'? Allowed: accuracy, format, medr1_",
        ),
        ("zzz", "unknown reward function 'zzz'; Allowed: accuracy"),
        ("no_such_module_at_all:f", "cannot import module 'no_such_module_at_all' (ModuleNotFoundError"),
        (
            "users_broken:f",
            "cannot import module 'users_broken' (ModuleNotFoundError: No module named 'no_such_mod",
        ),
        (":short", "cannot import module '' (ValueError"),
        ("users_rewards:shot", "has nothing of that name, a function is needed; did you mean 'short'?"),
        ("users_rewards:", "has nothing of that name, a function is needed"),
        ("users_rewards:constant", "has a int, a function is needed"),
    ],
)
def test_names_that_cannot_be_resolved(users_module: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^reward\.functions: .*" + re.escape(message)):
        resolve({name: 1.0}, "think")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "on prompt 'p9' raised KeyError: 'mode'; completion: 'abc'"),
        ("words", "on prompt 'p9' returned 'good' (str); a finite number is needed"),
        ("nan", "on prompt 'p9' returned nan (float); a finite number is needed"),
        ("huge", "(int); a finite number is needed"),
    ],
)
def test_results_that_are_no_rewards(users_module: str, name: str, message: str) -> None:
    functions = resolve({f"{users_module}:{name}": 1.0}, "think")
    expected = f"reward function '{users_module}:{name}' " if "prompt" in message else ""
    with pytest.raises(ValueError, match=re.escape(expected + message)):
        score("p9", ("abc",), MODALITY, "think", functions, "r")


def test_weights_must_be_finite_and_so_must_the_sum() -> None:
    with pytest.raises(ValueError, match="the weight of 'accuracy' is nan"):
        resolve({"accuracy": float("nan")}, "think")
    with pytest.raises(ValueError, match="weighted sum on prompt 'p3' is not finite"):
        score("p3", ("<answer>C</answer>",), MODALITY, "think", resolve({"accuracy": 1e39}, "think"), "r")


def test_medr1_format_has_no_think_after() -> None:
    with pytest.raises(ValueError, match="medr1_format has no mode=think_after"):
        resolve({"accuracy": 1.0, "medr1_format": 1.0}, "think_after")
    with pytest.raises(ValueError, match="medr1_format has no mode=think_after"):
        REGISTRY["medr1_format"]("<answer>C</answer>", MODALITY, "think_after")


def test_overlong_completions_are_punished_over_the_buffer() -> None:
    # At most 20 tokens, a buffer of 8: none up to 12, then (12 - length) / 8 (DAPO, eq. 13).
    texts = ("<answer>C</answer>",) * 5
    plain = score("p", texts, MODALITY, "no_think", resolve({"accuracy": 2.0}, "no_think"), "reward-0")
    lengths = np.array([1, 12, 13, 18, 20], np.int32)
    punished = punish_overlong(plain, lengths, max_tokens=20, buffer_tokens=8)
    expected = np.float32([0, 0, -1 / 8, -6 / 8, -1])
    assert punished.names == ("accuracy", "overlong")
    np.testing.assert_allclose(punished.values, np.column_stack([np.ones(5), expected]))
    np.testing.assert_allclose(punished.total, 2 + expected)
    assert punished.total.dtype == punished.values.dtype == np.float32
    assert punish_overlong(plain, lengths, max_tokens=20, buffer_tokens=0) is plain
