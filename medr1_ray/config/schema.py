"""Every setting of a run, checked before any actor starts. Loading and overrides: `loading.py`."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from medr1_ray.config.algorithm import LossSettings, Objective, ReferenceSettings, RewardSettings
from medr1_ray.config.checks import check_combinations
from medr1_ray.config.cluster import ClusterSettings
from medr1_ray.config.data import DataSettings
from medr1_ray.config.field_types import Settings
from medr1_ray.config.hardware import HardwareSettings, SizingSettings
from medr1_ray.config.sections import (
    LearnerSettings,
    ModelSettings,
    ParitySettings,
    RolloutSettings,
    RunSettings,
    TrainSettings,
)
from medr1_ray.types import Mode


class Config(Settings):
    """All settings of a run."""

    objective: Objective = "grpo"
    """What the run maximises: `grpo` the reward of its own completions (`medr1_ray.train`), `sft` the likelihood of
    the right answers (`medr1_ray.sft`, which sets it). SFT has no use for `loss`, `reference`, `reward.functions`,
    `train.group_size`, `train.max_staleness` and `train.dynamic_sampling`."""
    mode: Mode = "no_think"
    run: RunSettings
    model: ModelSettings = ModelSettings()
    data: DataSettings
    train: TrainSettings
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    loss: LossSettings = LossSettings()
    reference: ReferenceSettings = ReferenceSettings()
    learner: LearnerSettings = LearnerSettings()
    parity: ParitySettings = ParitySettings()
    cluster: ClusterSettings = ClusterSettings()
    hardware: HardwareSettings = HardwareSettings()
    sizing: SizingSettings = SizingSettings()

    @property
    def gap_mean_limit(self) -> float:
        """Nats: the parity limit in force."""
        if self.parity.gap_mean_limit is not None:
            return self.parity.gap_mean_limit
        return 1e-3 if self.model.dtype == "float32" else 2e-2

    @property
    def takes_kl(self) -> bool:
        """Whether the objective has a KL to the reference."""
        return self.objective == "grpo" and self.loss.kl_beta > 0

    @property
    def completions_per_prompt(self) -> int:
        """How many the learner learns from."""
        return self.train.group_size if self.objective == "grpo" else 1

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        check_combinations(self)
        return self
