"""Groups on disk with all that an update needs, so that a training can be done again from the same rollouts.

    recorded/step-000012.safetensors             the groups of the step that ended with step 12
    recorded/demonstrations-000012.safetensors   what a supervised step was to imitate, in the same form without rewards

Arrays are stored as `<group>/<name>`, in the shapes of `types.py`; what is no array is JSON in the file's metadata.
Nothing in it is a pickle, and what is read is checked: a file may come from somebody else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medr1_ray.base.atomic_files import publish
from medr1_ray.types import (
    LETTERS,
    CompletedPrompt,
    Completions,
    Group,
    Prompt,
    Question,
    Rewards,
    Span,
    pixels_of,
)

RECORDED = "recorded"
"""The folder below a run's directory."""

_NAME = re.compile(r"step-(\d{6,})\.safetensors")
# By the shapes of types.py; T, S, G, R, H and W are sizes in which the arrays agree.
_ARRAYS: dict[str, tuple[str, str]] = {
    "prompt_token_ids": ("int32", "T"),
    "image": ("uint8", "HW3"),
    "token_ids": ("int32", "S"),
    "rollout_logprobs": ("float32", "S"),
    "versions": ("int32", "S"),
    "lengths": ("int32", "G"),
    "truncated": ("bool", "G"),
    "values": ("float32", "GR"),
    "total": ("float32", "G"),
    "correct": ("bool", "G"),
    "well_formed": ("bool", "G"),
    "advantages": ("float32", "G"),
}


def write_groups(folder: Path, step: int, groups: Sequence[Group]) -> Path:
    """Write the groups of a step, whole or not at all; returns the file."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    arrays = {f"{i}/{name}": array for i, group in enumerate(groups) for name, array in _arrays_of(group).items()}
    path = folder / f"step-{step:06}.safetensors"
    with publish(path) as partial:
        save_file(arrays, partial, {"groups": json.dumps([_told_of(group) for group in groups])})
    return path


def write_demonstrations(folder: Path, step: int, demonstrations: Sequence[CompletedPrompt]) -> Path:
    """Write what a supervised step was to imitate, as the learner got it; returns the file. It is for whoever looks for
    the cause of a step that was skipped: no run reads it."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {}
    for i, (prompt, target) in enumerate(demonstrations):
        arrays[f"{i}/prompt_token_ids"], arrays[f"{i}/token_ids"] = prompt.token_ids, target.token_ids
        arrays[f"{i}/image"] = np.ascontiguousarray(pixels_of(prompt.image))
    told = [
        {"id": prompt.id, "question": asdict(prompt.question), "text": target.texts[0]}
        for prompt, target in demonstrations
    ]
    path = folder / f"demonstrations-{step:06}.safetensors"
    with publish(path) as partial:
        save_file(arrays, partial, {"demonstrations": json.dumps(told)})
    return path


def recorded_steps(folder: Path) -> list[int]:
    """Return the steps that a folder has groups of, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))


def steps_apart(steps: Sequence[int]) -> int:
    """Return how many optimizer steps the recording run took on each batch: files are named by the last of them."""
    return min(steps, default=1)


def read_groups(folder: Path, step: int) -> list[Group]:
    """Return the groups of a step.

    Raises:
        ValueError: there are none, or the file is damaged or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / f"step-{step:06}.safetensors"
    if not path.is_file():
        steps = recorded_steps(folder)
        there = f"it has {len(steps)} steps, {steps[0]} to {steps[-1]}" if steps else "it has none"
        raise ValueError(f"{folder}: no groups of step {step} are recorded there ({there}); lower train.steps")
    try:
        with safe_open(path, "np") as file:
            told = json.loads((file.metadata() or {})["groups"])
            return [
                _group(each, {name: file.get_tensor(f"{i}/{name}") for name in _ARRAYS}) for i, each in enumerate(told)
            ]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: no recorded groups that can be used ({error})") from None


def _arrays_of(group: Group) -> dict[str, NDArray[Any]]:
    completions, rewards = group.completions, group.rewards
    of = {
        **vars(completions),
        **vars(rewards),
        "prompt_token_ids": group.prompt.token_ids,
        "image": pixels_of(group.prompt.image),
        "advantages": group.advantages,
    }
    return {name: np.ascontiguousarray(of[name]) for name in _ARRAYS}


def _told_of(group: Group) -> dict[str, Any]:
    completions, rewards = group.completions, group.rewards
    return {
        "id": group.prompt.id,
        "question": asdict(group.prompt.question),
        "actor": completions.actor,
        "texts": completions.texts,
        "visual_tokens": completions.visual_tokens,
        "names": rewards.names,
        "answers": rewards.answers,
        "spans": [asdict(completions.span), asdict(rewards.span)],
    }


def _group(told: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> Group:
    sizes = _require_shapes(arrays)
    question = _question(told["question"])
    texts, names, answers = (tuple(told[key]) for key in ("texts", "names", "answers"))
    visual_tokens, generated, scored = told["visual_tokens"], *(_span(span) for span in told["spans"])
    prompt_id, actor = told["id"], told["actor"]
    _require(all(isinstance(text, str) for text in (prompt_id, actor, *texts, *names)), "texts")
    _require((len(texts), len(answers), len(names)) == (sizes["G"], sizes["G"], sizes["R"]), "numbers of completions")
    _require(all(answer is None or answer in tuple(LETTERS) for answer in answers), "answers")
    _require(type(visual_tokens) is int and visual_tokens > 0, "visual tokens")
    lengths = arrays["lengths"]
    _require(bool((lengths >= 0).all()) and int(lengths.sum()) == sizes["S"], "lengths")
    _require(bool((arrays["token_ids"] >= 0).all() and (arrays["prompt_token_ids"] >= 0).all()), "token ids")
    finite = ("rollout_logprobs", "values", "total")
    _require(all(np.isfinite(arrays[name]).all() for name in finite), "numbers that are not finite")
    completions = Completions(
        prompt_id=prompt_id,
        actor=actor,
        texts=texts,
        visual_tokens=visual_tokens,
        span=generated,
        **{name: arrays[name] for name in ("token_ids", "rollout_logprobs", "versions", "lengths", "truncated")},
    )
    rewards = Rewards(
        prompt_id=prompt_id,
        names=names,
        answers=answers,
        span=scored,
        **{name: arrays[name] for name in ("values", "total", "correct", "well_formed")},
    )
    prompt = Prompt(prompt_id, question, arrays["prompt_token_ids"], arrays["image"])
    return Group(prompt, completions, rewards, arrays["advantages"])


def _require_shapes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return the sizes by letter."""
    sizes: dict[str, int] = {"3": 3}
    for name, (dtype, letters) in _ARRAYS.items():
        array = arrays[name]
        _require(array.dtype == dtype and array.ndim == len(letters), f"{name} is {array.dtype} {array.shape}")
        for letter, size in zip(letters, array.shape, strict=True):
            _require(size > 0 and sizes.setdefault(letter, size) == size, f"{name} has the shape {array.shape}")
    return sizes


def _question(told: Mapping[str, Any]) -> Question:
    question = Question(**{**told, "options": tuple(told["options"])})
    texts = [getattr(question, field.name) for field in fields(Question) if field.name not in ("options", "answer")]
    _require(all(isinstance(text, str) for text in (*texts, *question.options)), "question")
    _require(2 <= len(question.options) <= len(LETTERS), "options")
    _require(type(question.answer) is int and 0 <= question.answer < len(question.options), "answer")
    return question


def _span(told: Mapping[str, Any]) -> Span:
    span = Span(**told)
    _require(isinstance(span.actor, str) and isinstance(span.phase, str), "span")
    _require(all(isinstance(at, int | float) for at in (span.start_seconds, span.end_seconds)), "span")
    return span


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"its {what} do not fit" if " " not in what else what)
