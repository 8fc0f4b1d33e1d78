"""Base class and number types of all settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class MayChange:
    """Marks a setting or a section that a resumed run may change: `steps: Annotated[PositiveInt, MayChange]`."""


class Settings(BaseModel):
    """Base of all settings: immutable; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
