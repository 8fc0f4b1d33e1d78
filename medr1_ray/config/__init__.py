"""Every setting of a run, checked before any actor starts; and loading them. Light to import.

Runs in: the driver, which sends actors the sections that they read.

Doors: this module, and `config.loading`.

To add a setting: a field with a docstring in its section's file; what it must not be combined with goes to `checks.py`.
"""

from medr1_ray.config.algorithm import (
    LoraSettings,
    LossSettings,
    Objective,
    ReferenceSettings,
    RewardSettings,
)
from medr1_ray.config.cluster import ClusterSettings
from medr1_ray.config.data import DataSettings
from medr1_ray.config.hardware import Device, HardwareSettings
from medr1_ray.config.schema import Config
from medr1_ray.config.sections import (
    LearnerSettings,
    ModelSettings,
    RolloutSettings,
    RunSettings,
    TrainSettings,
    tiny_model_path,
)

__all__ = [
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
    "ReferenceSettings",
    "RewardSettings",
    "RolloutSettings",
    "RunSettings",
    "TrainSettings",
    "tiny_model_path",
]
