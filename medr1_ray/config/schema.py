"""The complete configuration of a run; files and overrides are loaded by `config/loading.py`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from medr1_ray.config.algorithm import LossSettings, Objective, ReferenceSettings, RewardSettings
from medr1_ray.config.checks import automatic_transport, check_combinations
from medr1_ray.config.cluster import ClusterSettings
from medr1_ray.config.data import DataSettings
from medr1_ray.config.field_types import MayChange, Settings
from medr1_ray.config.hardware import HardwareSettings, SizingSettings
from medr1_ray.config.prompt import PromptSettings
from medr1_ray.config.sections import (
    AlarmSettings,
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
    the correct answers (`medr1_ray.sft`, which sets it). SFT ignores `loss`, `reference`, `reward.functions`,
    `train.group_size`, `train.max_staleness` and `train.dynamic_sampling`."""
    mode: Mode = "no_think"
    run: Annotated[RunSettings, MayChange]
    model: ModelSettings = ModelSettings()
    data: DataSettings
    prompt: PromptSettings = PromptSettings()
    train: TrainSettings
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    loss: LossSettings = LossSettings()
    reference: ReferenceSettings = ReferenceSettings()
    learner: LearnerSettings = LearnerSettings()
    parity: Annotated[ParitySettings, MayChange] = ParitySettings()
    alarms: Annotated[AlarmSettings, MayChange] = AlarmSettings()
    cluster: Annotated[ClusterSettings, MayChange] = ClusterSettings()
    hardware: Annotated[HardwareSettings, MayChange] = HardwareSettings()
    sizing: Annotated[SizingSettings, MayChange] = SizingSettings()

    @property
    def gap_mean_limit(self) -> float:
        """The limit of the parity gate in nats: `parity.gap_mean_limit`, or its default for the dtype."""
        if self.parity.gap_mean_limit is not None:
            return self.parity.gap_mean_limit
        # Engine and learner use different kernels; in bfloat16 these round far more coarsely.
        return 1e-3 if self.model.dtype == "float32" else 2e-2

    @property
    def takes_kl(self) -> bool:
        """Whether the objective includes a KL term against the reference."""
        return self.objective == "grpo" and self.loss.kl_beta > 0

    @property
    def completions_per_prompt(self) -> int:
        """Completions per prompt that the learner trains on."""
        return self.train.group_size if self.objective == "grpo" else 1

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.cluster.weight_transport == "auto":
            transport, _ = automatic_transport(self)
            # Settings are immutable; this is still their making. A copy would be lost where `Config(...)` is called.
            object.__setattr__(self, "cluster", self.cluster.model_copy(update={"weight_transport": transport}))
        check_combinations(self)
        return self
