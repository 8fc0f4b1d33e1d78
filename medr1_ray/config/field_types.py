"""Base class and number types of all settings."""

from __future__ import annotations

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


class MayChange:
    """Marks a setting or a section that a resumed run may change: `steps: Annotated[PositiveInt, MayChange]`."""


class Settings(BaseModel):
    """Base of all settings: immutable; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
