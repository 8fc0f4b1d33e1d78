"""A number is a number, in every setting that takes one: no truth value, not NaN, not infinity."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from medr1_ray.config import Config, as_path
from medr1_ray.config.loading import load_config
from tests.repository import REPOSITORY


def numbers(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and the type of each setting that holds numbers."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, f"{prefix}{name}.")
        if _holds_numbers(field.annotation):
            yield prefix + name, field.annotation


def _holds_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(_holds_numbers(inner) for inner in get_args(kind))


def spelled(kind: Any, value: str) -> str:
    if get_origin(kind) is dict:
        return f"{{accuracy: {value}}}"
    return f"[{value}, {value}]" if get_origin(kind) is tuple else value


NUMBERS = list(numbers())


def test_all_numbers_are_found() -> None:
    assert len(NUMBERS) > 60
    assert {"train.steps", "learner.betas", "reward.functions", "data.sampling_weights", "model.lora.rank"} <= {
        key for key, _ in NUMBERS
    }


@pytest.mark.parametrize("value", ["true", "false", ".nan", ".inf", "-.inf"])
def test_what_is_not_a_number_is_refused_by_every_setting_that_takes_one(value: str) -> None:
    taken = []
    for key, kind in NUMBERS:
        try:
            load_config([REPOSITORY / "configs/phantom_cpu.yaml"], [f"{key}={spelled(kind, value)}"])
        except ValueError as error:
            if key in str(error):
                continue
        taken.append(key)
    assert not taken, "not refused, or not by its key"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.steps=true", "train.steps=True: input should be a number"),
        ("loss.clip_low=1", "loss.clip_low=1: input should be less than 1"),
        ("learner.betas=[0.9, 1]", "learner.betas.1=1: input should be less than 1"),
        ("data.sampling_weights={CT: -1}", "data.sampling_weights.CT=-1: input should be greater than or equal to 0"),
        ("learner.learning_rate=.inf", "learner.learning_rate=inf: input should be a finite number"),
    ],
)
def test_the_error_names_key_and_value(setting: str, says: str) -> None:
    with pytest.raises(ValueError, match="not valid") as caught:
        load_config([REPOSITORY / "configs/phantom_cpu.yaml"], [setting])
    assert says in str(caught.value)


def test_an_argument_is_a_path_as_the_shell_would_have_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = {"~": "/home/me", "~/a/": "/home/me/a", "a/~": "a/~", "./~a": "~a", "US$ 5": "US$ 5", "/x": "/x"}
    assert {path: str(as_path(path)) for path in given} == given
    for path in ("$HOME/a", "a/${DATA}", "~nobody-here/a"):
        with pytest.raises(ArgumentTypeError, match=r"has not replaced; give its|is no user's home folder here; give"):
            as_path(path)
