"""Reward functions, their registry, and the scoring of one group. No actor, no engine.

A reward function takes (completion, question, mode) and returns a finite number. `accuracy` and `format`
judge by `parsing.parse_answer`. `medr1_accuracy` and `medr1_format` are the reference's own (arXiv
2503.13939), with its flaws, for comparison: they grade an answer planted inside the thinking, accept empty tags as
well-formed, refuse `c`, `C.`, `(C)` and an answer on a line of its own, and in No-Think refuse a trailing space.
"""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from medr1_ray.rewards.parsing import ParsedAnswer, parse_answer
from medr1_ray.types import Mode, Question, Rewards, Span

__all__ = [
    "ParsedAnswer",
    "RewardError",
    "RewardFunction",
    "WeightedReward",
    "parse_answer",
    "punish_overlong",
    "resolve",
    "score",
]

RewardFunction = Callable[[str, Question, Mode], float]

LARGEST_REWARD = 1e6
"""Beyond it a reward is a mistake: its square, which the group's deviation needs, leaves no precision to the others."""

_LONGEST_MESSAGE = 500
_MEDR1_WITHOUT_THINK_AFTER = (
    "reward.functions: medr1_format has no mode=think_after (the reference released none; allowed: think, "
    "no_think); use format instead"
)
_THINK_THEN_ANSWER = re.compile(r"</think>\s*<answer>")


class RewardError(ValueError):
    """A reward function failed on a completion.

    Args:
        message: one line.
        function: its name in the settings.
        completion: the whole text.
    """

    def __init__(self, message: str, function: str, completion: str) -> None:
        super().__init__(message, function, completion)  # so that it can be pickled
        self.function = function
        self.completion = completion

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class WeightedReward:
    """A reward function as the config names it; the total reward sums `weight` times its value."""

    name: str
    weight: float
    function: RewardFunction


def accuracy(completion: str, question: Question, mode: Mode) -> float:
    """1 where the answer outside the thinking is the gold letter, else 0."""
    return float(parse_answer(completion, question, mode).letter == question.gold_letter)


def format_reward(completion: str, question: Question, mode: Mode) -> float:
    """1 where the completion keeps the mode's format, else 0."""
    return float(parse_answer(completion, question, mode).well_formed)


def medr1_accuracy(completion: str, question: Question, mode: Mode) -> float:
    """1 where the first match of `<answer>(.*?)</answer>`, stripped, is the gold letter (arXiv 2503.13939).

    Found line by line, which gives the regular expression's result in linear time: where a line's first
    opening tag has no closing tag after it, no later one has.
    """
    for line in completion.split("\n"):
        start = line.find("<answer>")
        end = line.find("</answer>", start + len("<answer>")) if start >= 0 else -1
        if end >= 0:
            return float(line[start + len("<answer>") : end].strip() == question.gold_letter)
    return 0.0


def medr1_format(completion: str, question: Question, mode: Mode) -> float:
    r"""1 on a full match of the reference's pattern, dot matching newlines (arXiv 2503.13939), else 0.

    The patterns: `<think>.*?</think>\s*<answer>.*?</answer>` in Think, `\s*<answer>.*?</answer>` in No-Think;
    decided in linear time by both ends and one search for what lies between. Raises ValueError in
    Think-After, which the reference does not have.
    """
    if mode == "think_after":
        raise ValueError(_MEDR1_WITHOUT_THINK_AFTER)
    text = completion if mode == "think" else completion.lstrip()
    head, tail = ("<think>" if mode == "think" else "<answer>"), "</answer>"
    # The length is checked because head and tail must not overlap.
    if len(text) < len(head) + len(tail) or not (text.startswith(head) and text.endswith(tail)):
        return 0.0
    inner_end = len(text) - len(tail)
    return float(mode == "no_think" or bool(_THINK_THEN_ANSWER.search(text, len(head), inner_end)))


REGISTRY: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "format": format_reward,
    "medr1_accuracy": medr1_accuracy,
    "medr1_format": medr1_format,
}


def resolve(functions: Mapping[str, float], mode: Mode) -> tuple[WeightedReward, ...]:
    """The reward functions that `reward.functions` (name to weight) asks for, in its order.

    A name is one of `REGISTRY`, or `module:function` for a function of the user's on the Python path. Raises
    ValueError for a name that is neither, a module that cannot be imported, an attribute that is not a function or not
    one of (completion, question, mode), a weight that is not finite, and a function that does not have this mode.
    """
    if mode == "think_after" and "medr1_format" in functions:
        raise ValueError(_MEDR1_WITHOUT_THINK_AFTER)
    for name, weight in functions.items():
        if not math.isfinite(weight):
            raise ValueError(f"reward.functions: the weight of {name!r} is {weight}; use a finite number")
    return tuple(WeightedReward(name, weight, _find(name)) for name, weight in functions.items())


def _find(name: str) -> RewardFunction:
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" not in name:
        near = get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"reward.functions: unknown reward function {name!r}; {hint}Allowed: {', '.join(REGISTRY)}, or "
            "module:function for one of your own"
        )
    module_name, _, attribute = name.partition(":")
    where = f"reward.functions: {name!r}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"{where}: cannot import module {module_name!r} ({type(error).__name__}: {error}); it must be "
            "importable where the reward actor runs (installed, or in the job's working directory)"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        near = get_close_matches(
            attribute, [key for key in dir(module) if callable(getattr(module, key))], n=1
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        found = "nothing of that name" if function is None else f"a {type(function).__name__}"
        raise ValueError(f"{where}: module {module_name!r} has {found}, a function is needed{hint}")
    _require_arguments(where, function)
    return function  # type: ignore[no-any-return]


def _require_arguments(where: str, function: Callable[..., object]) -> None:
    """Check that a function can be called as a reward, which would else be found at the first step."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # of some functions in C
    try:
        signature.bind("completion", "question", "mode")
    except TypeError as error:
        raise ValueError(
            f"{where} takes {signature}, and cannot be called with (completion, question, mode): {error}; give it "
            "these three, in this order"
        ) from None
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{where} is an async function, whose result is not a number; use a plain one (def)")


def score(
    prompt_id: str,
    texts: tuple[str, ...],
    question: Question,
    mode: Mode,
    functions: tuple[WeightedReward, ...],
    actor: str,
) -> Rewards:
    """Score the G completions `texts` of one prompt; values are float32 [G, R] in the order of `functions`.

    Raises RewardError, naming function and prompt, where a function raises or returns anything but a finite number of
    at most `LARGEST_REWARD`.
    """
    started = time.time()
    parsed = [parse_answer(text, question, mode) for text in texts]
    values = np.array(
        [[_value(function, text, question, mode, prompt_id) for function in functions] for text in texts],
        dtype=np.float32,
    ).reshape(len(texts), len(functions))
    weights = [function.weight for function in functions]
    total = values.astype(np.float64) @ weights
    if (np.abs(total) > LARGEST_REWARD).any():
        worst = int(np.abs(total).argmax())
        raise RewardError(
            f"reward.functions: the weighted sum on prompt {prompt_id!r} is {total[worst]:g}, beyond "
            f"{LARGEST_REWARD:g}: values {values[worst].tolist()}, weights {weights}; use smaller weights",
            "the weighted sum",
            texts[worst],
        )
    return Rewards(
        prompt_id=prompt_id,
        names=tuple(function.name for function in functions),
        values=values,
        total=total.astype(np.float32),
        correct=np.array([answer.letter == question.gold_letter for answer in parsed], dtype=np.bool_),
        well_formed=np.array([answer.well_formed for answer in parsed], dtype=np.bool_),
        answers=tuple(answer.letter for answer in parsed),
        span=Span(actor, "reward", started, time.time()),
    )


def punish_overlong(rewards: Rewards, lengths: NDArray[np.int32], max_tokens: int, buffer_tokens: int) -> Rewards:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13) as one more reward, `overlong`, of weight 1.

    0 for completions of up to `max_tokens - buffer_tokens` tokens (`lengths`, int [G]), from there falling linearly to
    -1 at `max_tokens`, which no completion exceeds. Unchanged where `buffer_tokens` is 0.
    """
    if buffer_tokens == 0:
        return rewards
    over = lengths.astype(np.float32) - np.float32(max_tokens - buffer_tokens)
    punishment = -np.maximum(over, 0) / np.float32(buffer_tokens)
    return replace(
        rewards,
        names=(*rewards.names, "overlong"),
        values=np.column_stack([rewards.values, punishment]),
        total=rewards.total + punishment,
    )


def _value(reward: WeightedReward, text: str, question: Question, mode: Mode, prompt_id: str) -> float:
    where, what = f"reward function {reward.name!r} on prompt {prompt_id!r}", f"completion: {text[:200]!r}"
    try:
        value = reward.function(text, question, mode)
    # SystemExit too, with which a function would end the actor.
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:_LONGEST_MESSAGE]
        raise RewardError(f"{where} raised {type(error).__name__}: {said}; {what}", reward.name, text) from error
    # A NaN fails both comparisons. `numbers.Real` includes bool and NumPy's numbers, but not NumPy's bool.
    if not (isinstance(value, numbers.Real | np.bool_) and -LARGEST_REWARD <= value <= LARGEST_REWARD):
        returned = repr(value)[:_LONGEST_MESSAGE]
        raise RewardError(
            f"{where} returned {returned} ({type(value).__name__}); a finite number is needed (at most "
            f"{LARGEST_REWARD:g}); {what}",
            reward.name,
            text,
        )
    return float(value)
