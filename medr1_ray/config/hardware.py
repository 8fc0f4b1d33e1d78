"""What the machines of a run can do and cost, and what its data are like: for the estimates of `--dry-run` and the cost
of groups, no more.

`configs/hardware/` has files with these numbers, to be given as one more `--config`. docs/sizing.md has the formulas.
"""

from __future__ import annotations

from medr1_ray.config.field_types import NonNegativeFloat, PositiveFloat, PositiveInt, Settings


class Device(Settings):
    """One GPU, or the cores of one process where there is none. Rates are those attained, not those of a data sheet."""

    matmul_flops_per_second: PositiveFloat | None = None
    """Of matrix products in the compute dtype; without it there are no estimates of time."""
    attention_flops_per_second: PositiveFloat | None = None
    """Of attention's two products and softmax; by default as fast as other products."""
    activation_bytes_per_second: PositiveFloat | None = None
    """What the learner does between products, by the bytes that it keeps; without it that takes no time."""
    memory_bytes_per_second: PositiveFloat | None = None
    """Weights, keys and values in the engine, the optimizer's states in the learner; without it they take no time."""
    layer_seconds: NonNegativeFloat = 0.0
    """Of starting one layer, once for a micro-batch in the learner and once for a step in the engine."""
    price_per_hour: NonNegativeFloat | None = None
    """Of one device with its share of the machine, in any currency."""


class HardwareSettings(Settings):
    """The devices of learner and rollout actors, and what is paid beside arithmetic."""

    learner: Device = Device()
    rollout: Device = Device()
    image_seconds_per_megapixel: NonNegativeFloat = 0.0
    """Of the learner, for cutting an image into patches."""
    prompt_seconds: NonNegativeFloat = 0.0
    """Of an engine, for one prompt with its image beside their arithmetic."""
    completion_seconds: NonNegativeFloat = 0.0
    """Of an engine, for one completion beside its tokens."""
    token_seconds: NonNegativeFloat = 0.0
    """Of an engine, for one sampled token beside its arithmetic."""
    sync_seconds: NonNegativeFloat = 0.0
    """Of a weight sync of no bytes."""
    sync_bytes_per_second: PositiveFloat | None = None
    """Weights from the learner into the engines; without it only `sync_seconds` counts."""

    def price_per_hour(self, learner_devices: float, rollout_devices: float) -> float | None:
        """Of all devices; None where a price is missing."""
        if self.learner.price_per_hour is None or self.rollout.price_per_hour is None:
            return None
        return learner_devices * self.learner.price_per_hour + rollout_devices * self.rollout.price_per_hour


class SizingSettings(Settings):
    """What cannot be known before the data are read and the policy has spoken."""

    prompt_text_tokens: PositiveInt = 100
    """Tokens of a prompt beside its image, mean."""
    completion_tokens: PositiveFloat | None = None
    """Of a completion, mean; by default the longest, `rollout.max_tokens`."""
    epoch_questions: PositiveInt | None = None
    """Questions of an epoch; by default those of the whole run."""
