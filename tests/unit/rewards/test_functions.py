"""Reward functions, their registry and the scoring of a group, against values read off each completion by hand."""

from __future__ import annotations

import pickle
import random
import re
import sys

import numpy as np
import pytest

from medr1_ray.rewards.functions import REGISTRY, RewardError, punish_overlong, resolve, score
from medr1_ray.types import Mode
from tests.unit.rewards.completions import COMPLETIONS, HOSTILE, MODALITY, MODES, takes_linear_time


@pytest.mark.parametrize(("completion", "letter", "formats", "medr1_accuracy", "medr1_formats"), COMPLETIONS)
def test_completions(
    completion: str, letter: str | None, formats: str, medr1_accuracy: int, medr1_formats: str
) -> None:
    for key, mode in MODES.items():
        assert REGISTRY["accuracy"](completion, MODALITY, mode) == float(letter == "C")
        assert REGISTRY["format"](completion, MODALITY, mode) == float(key in formats)
        assert REGISTRY["medr1_accuracy"](completion, MODALITY, mode) == medr1_accuracy
        if key != "A":
            assert REGISTRY["medr1_format"](completion, MODALITY, mode) == float(key in medr1_formats)


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


@pytest.mark.parametrize("completion", HOSTILE, ids=lambda completion: completion[:25])
def test_a_long_completion_takes_no_more_than_linear_time(completion: str) -> None:
    assert takes_linear_time(
        lambda: REGISTRY["medr1_accuracy"](completion, MODALITY, "think"),
        *(lambda mode=mode: REGISTRY["medr1_format"](completion, MODALITY, mode) for mode in REFERENCE_FORMAT),
    )


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

def large(completion, question, mode):
    return 3e38

def infinite(completion, question, mode):
    return -float("inf")

def list_of_another_length(completion, question, mode):
    return [1.0, 0.0]

def talks(completion, question, mode):
    raise RuntimeError("one\\ntwo\\n  three")

def exits(completion, question, mode):
    raise SystemExit(3)

def numpys_bool(completion, question, mode):
    import numpy
    return numpy.all(numpy.array([len(completion) > 3]))

def asks_for_two(completion, question):
    return 1.0

def asks_for_a_name(completion, question, mode, *, scale):
    return scale

def asks_for_anything(*arguments, **settings):
    return 1.0

async def waits(completion, question, mode):
    return 1.0

class Scorer:
    def __call__(self, completion, question, mode, weight=1.0):
        return weight

scorer = Scorer()
in_c = max
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
    functions = resolve({f"{users_module}:numpys_bool": 2.0}, "no_think")
    assert score("p1", ("abc", "abcd"), MODALITY, "no_think", functions, "r").total.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("name", ["scorer", "asks_for_anything", "in_c"])
def test_what_can_be_called_with_three_arguments_passes(users_module: str, name: str) -> None:
    (found,) = resolve({f"{users_module}:{name}": 1.0}, "think")
    assert found.name == f"users_rewards:{name}"


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
        (
            "users_rewards:asks_for_two",
            "takes (completion, question), and cannot be called with (completion, question, mode): too many pos",
        ),
        ("users_rewards:asks_for_a_name", "missing a required argument: 'scale'; give it these three, in this order"),
        ("users_rewards:Scorer", "takes (), and cannot be called with (completion, question, mode): too many"),
        ("users_rewards:waits", "is an async function, whose result is not a number; use a plain one (def)"),
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
        ("large", "on prompt 'p9' returned 3e+38 (float); a finite number is needed (at most 1e+06)"),
        ("infinite", "on prompt 'p9' returned -inf (float); a finite number is needed"),
        ("list_of_another_length", "on prompt 'p9' returned [1.0, 0.0] (list); a finite number is needed"),
        ("talks", "on prompt 'p9' raised RuntimeError: one two three; completion: 'abc'"),
        ("exits", "on prompt 'p9' raised SystemExit: 3; completion: 'abc'"),
    ],
)
def test_results_that_are_no_rewards(users_module: str, name: str, message: str) -> None:
    functions = resolve({f"{users_module}:{name}": 1.0}, "think")
    expected = f"reward function '{users_module}:{name}' " if "prompt" in message else ""
    with pytest.raises(RewardError, match=re.escape(expected + message)) as caught:
        score("p9", ("abc",), MODALITY, "think", functions, "r")
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.function, again.completion) == (str(caught.value), f"{users_module}:{name}", "abc")


def test_weights_must_be_finite_and_so_must_the_sum() -> None:
    with pytest.raises(ValueError, match="the weight of 'accuracy' is nan"):
        resolve({"accuracy": float("nan")}, "think")
    for texts in (("<answer>C</answer>",), ("<answer>A</answer>", "<answer>C</answer>")):  # 1e39, and 0 beside it
        with pytest.raises(ValueError, match=r"weighted sum on prompt 'p3' is 1e\+39, beyond 1e\+06"):
            score("p3", texts, MODALITY, "think", resolve({"accuracy": 1e39}, "think"), "r")


def test_medr1_format_has_no_think_after() -> None:
    others = resolve({"accuracy": 1.0, "format": 0.5, "medr1_accuracy": 0.25}, "think_after")
    assert [(reward.name, reward.weight) for reward in others] == [
        ("accuracy", 1.0),
        ("format", 0.5),
        ("medr1_accuracy", 0.25),
    ]
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
