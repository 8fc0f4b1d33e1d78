"""Settings of a matrix experiment: the models to train, the questions to train them on, and those to test them on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from medr1_ray.config import Config
from medr1_ray.config.field_types import Expanded, PositiveInt, Settings
from medr1_ray.config.loading import explain, load_config
from medr1_ray.data.questions import MODALITIES, QUESTION_TYPES, UNKNOWN
from medr1_ray.types import Mode, Question

Axis = Literal["modality", "question_type"]

BASE = "base"
"""Name of the start model's row, which is part of every matrix."""
NAMES: dict[Axis, tuple[str, ...]] = {
    "modality": tuple(name for name in MODALITIES if name != UNKNOWN),
    "question_type": tuple(name for name in QUESTION_TYPES if name != UNKNOWN),
}
_FILTER: dict[Axis, str] = {"modality": "data.modalities", "question_type": "data.question_types"}


class Method(Settings):
    """A way to train a row's model: a command of this package, and settings for it."""

    command: Literal["train", "sft"]
    overrides: tuple[str, ...] = ()


class MatrixSettings(Settings):
    """All settings of a matrix experiment."""

    out: Annotated[Path, Expanded]
    configs: Annotated[tuple[Path, ...], Expanded] = Field(min_length=1)
    """Settings files of every run, as for `medr1_ray.train`."""
    methods: dict[str, Method] = Field(min_length=1)
    axes: dict[Mode, dict[Axis, tuple[str, ...]]] = Field(min_length=1)
    """The matrices to make: per mode, over modalities, question types or both; each with settings for all of its
    trainings, whatever the method."""
    mode_overrides: dict[Mode, tuple[str, ...]] = Field(default_factory=dict)
    """Settings for all trainings and evaluations of a mode."""
    trainings_at_a_time: PositiveInt = 1
    """Trainings to run in parallel, each with its own Ray cluster; more than one if a training leaves cores idle."""
    questions_per_column: PositiveInt = 200
    """Test questions per modality or question type; fewer where the data have fewer."""


@dataclass(frozen=True)
class Trained:
    """One row of one matrix: the model trained by `method` in `mode` on the questions of `name`."""

    axis: Axis
    mode: Mode
    method: str
    name: str

    @property
    def slug(self) -> str:
        """Name of the row's files and folders."""
        return f"{self.axis}-{self.mode}-{self.method}-{self.name}".lower().replace(" ", "_")


def load_matrix_settings(path: Path) -> MatrixSettings:
    """Read the settings from a YAML file.

    Raises:
        ValueError: the file cannot be read, or a setting is invalid.
    """
    try:
        return MatrixSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ValueError(f"--config {path} cannot be read as YAML ({reason}); give a file of configs/matrix") from None
    except ValidationError as error:
        problems = "; ".join(explain(error.errors(), MatrixSettings))
    # Outside the handler, so that pydantic's own error is not shown as the cause.
    raise ValueError(f"--config {path}: {problems}")


def rows(settings: MatrixSettings) -> Iterator[Trained]:
    """Yield every model to train, matrix by matrix."""
    for mode, axes in settings.axes.items():
        for axis in axes:
            for method in settings.methods:
                for name in NAMES[axis]:
                    yield Trained(axis, mode, method, name)


def overrides(settings: MatrixSettings, row: Trained) -> list[str]:
    """Return the settings of a row's training, which override those of `settings.configs`."""
    return [
        *settings.mode_overrides.get(row.mode, ()),
        *settings.axes[row.mode][row.axis],
        *settings.methods[row.method].overrides,
        f"mode={row.mode}",
        f"{_FILTER[row.axis]}={json.dumps([row.name])}",
        f"run.dir={json.dumps(str(run_directory(settings, row)))}",
    ]


def run_directory(settings: MatrixSettings, row: Trained) -> Path:
    """Return the run directory of a row's training."""
    return settings.out / "runs" / row.slug


def mode_config(settings: MatrixSettings, mode: Mode) -> Config:
    """Return the settings for the evaluation of all models of a mode; they do not filter the questions."""
    return load_config(settings.configs, [*settings.mode_overrides.get(mode, ()), f"mode={mode}"])


def column_of(question: Question, axis: Axis) -> str:
    """Return the column that a question belongs to."""
    return question.modality if axis == "modality" else question.question_type
