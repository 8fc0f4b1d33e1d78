"""Base class of all settings, their types of numbers, and paths as a shell would have left them."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _not_bool(value: Any) -> Any:
    # Python counts true as 1, so that `train.steps=true` would be a run of one step.
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_number", "input should be a number")
    return value


Int = Annotated[int, BeforeValidator(_not_bool)]
Float = Annotated[float, BeforeValidator(_not_bool)]
PositiveInt = Annotated[Int, Field(ge=1)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
BelowOne = Annotated[Float, Field(ge=0, lt=1)]
LARGEST_SEED = 2**32 - 1
"""NumPy's, which vLLM seeds."""
Seed = Annotated[Int, Field(ge=0, le=LARGEST_SEED)]

_VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*\}?")


class NotExpandedError(ValueError, argparse.ArgumentTypeError):
    """A path has what only a shell replaces; argparse shows the message of its own error only."""


def expanded(path: str) -> str:
    """Return a path with the home folder in place of a leading `~`, which shells leave inside a word (`run.dir=~/a`).

    Raises:
        NotExpandedError: it names a variable, or a user who is not there.
    """
    if found := _VARIABLE.search(path):
        raise NotExpandedError(
            f"{found[0]} in a path is a variable that the shell has not replaced; give its value, or leave out the "
            "quotes around it (in a file of settings, write the path itself)"
        )
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise NotExpandedError(
            f"{path.partition('/')[0]} is no user's home folder here; give the whole path (./{path} where it is meant)"
        )
    return whole


def as_path(path: str) -> Path:
    """Return an argument of the command line as a path; `type` of argparse. Raises NotExpandedError."""
    return Path(expanded(path))


def _expanded_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_expanded_value(item) for item in value]
    try:
        return expanded(value) if isinstance(value, str) else value
    except NotExpandedError as error:
        raise PydanticCustomError("path_not_expanded", "{said}", {"said": str(error)}) from None


Expanded = BeforeValidator(_expanded_value)
"""Marks a setting that is a path: `Annotated[Path, Expanded]`."""


class MayChange:
    """Marks a setting or a section that a resumed run may change: `steps: Annotated[PositiveInt, MayChange]`."""


class Settings(BaseModel):
    """Base of all settings: immutable; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
