"""All settings of a run, validated before any actor starts, and their loading. Cheap to import.

Runs in: the driver, which sends actors the sections they read.

Doors: this module, and `config.loading`.

To add a setting: add a field with a docstring to its section's file; combinations to refuse go into `checks.py`.
"""

from medr1_ray.config.algorithm import (
    LoraSettings,
    LossSettings,
    Objective,
    ReferenceSettings,
    RewardSettings,
)
from medr1_ray.config.checks import automatic_transport
from medr1_ray.config.cluster import ClusterSettings
from medr1_ray.config.data import DataSettings
from medr1_ray.config.field_types import LARGEST_SEED, as_path, expanded
from medr1_ray.config.hardware import Device, HardwareSettings
from medr1_ray.config.job_copy import in_ray_job, require_copied, require_lasting
from medr1_ray.config.prompt import PromptSettings
from medr1_ray.config.schema import Config
from medr1_ray.config.secrets import shown_text
from medr1_ray.config.sections import (
    AlarmSettings,
    LearnerSettings,
    ModelSettings,
    RolloutSettings,
    RunSettings,
    TrainSettings,
    tiny_model_path,
)
from medr1_ray.config.table import TableAnswers, TableColumns, TableSettings

__all__ = [
    "LARGEST_SEED",
    "AlarmSettings",
    "ClusterSettings",
    "Config",
    "DataSettings",
    "Device",
    "HardwareSettings",
    "LearnerSettings",
    "LoraSettings",
    "LossSettings",
    "ModelSettings",
    "Objective",
    "PromptSettings",
    "ReferenceSettings",
    "RewardSettings",
    "RolloutSettings",
    "RunSettings",
    "TableAnswers",
    "TableColumns",
    "TableSettings",
    "TrainSettings",
    "as_path",
    "automatic_transport",
    "expanded",
    "in_ray_job",
    "require_copied",
    "require_lasting",
    "shown_text",
    "tiny_model_path",
]
