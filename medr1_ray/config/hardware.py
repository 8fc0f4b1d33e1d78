"""Throughput and price of a run's hardware, and assumptions about its data.

Used only by the estimates of `--dry-run` and the metric of cost per group. `configs/hardware/` has files with these
numbers, to be given as an additional `--config`; docs/sizing.md has the formulas.
"""

from __future__ import annotations

from medr1_ray.config.field_types import NonNegativeFloat, PositiveFloat, PositiveInt, Settings


class Device(Settings):
    """One GPU, or the cores of one process where there is none. Rates are those attained, not data-sheet peaks."""

    matmul_flops_per_second: PositiveFloat | None = None
    """Throughput of matrix products in the compute dtype; without it no times are estimated."""
    attention_flops_per_second: PositiveFloat | None = None
    """Throughput of attention (its two products and softmax); default: that of other matrix products."""
    activation_bytes_per_second: PositiveFloat | None = None
    """Rate of the learner's work between products, per byte of activations kept; without it that work takes no time."""
    memory_bytes_per_second: PositiveFloat | None = None
    """Rate of reading weights, keys and values (engine) and optimizer states (learner); without it it takes no time."""
    layer_seconds: NonNegativeFloat = 0.0
    """Launch overhead per layer, paid once per micro-batch (learner) and once per step (engine)."""
    price_per_hour: NonNegativeFloat | None = None
    """Price of one device with its share of the machine, in any currency."""


class HardwareSettings(Settings):
    """Devices of learner and rollout actors, and overheads in addition to their arithmetic."""

    learner: Device = Device()
    rollout: Device = Device()
    image_seconds_per_megapixel: NonNegativeFloat = 0.0
    """Learner time to cut images into patches."""
    prompt_seconds: NonNegativeFloat = 0.0
    """Engine overhead per prompt with its image, excluding their arithmetic."""
    completion_seconds: NonNegativeFloat = 0.0
    """Engine overhead per completion, excluding its tokens."""
    token_seconds: NonNegativeFloat = 0.0
    """Engine overhead per sampled token, excluding its arithmetic."""
    sync_seconds: NonNegativeFloat = 0.0
    """Fixed part of a weight sync, independent of its size."""
    sync_bytes_per_second: PositiveFloat | None = None
    """Rate of moving weights into the engines through the object store; without it only `sync_seconds` counts."""
    nccl_bytes_per_second: PositiveFloat | None = None
    """The same by NCCL broadcast, at the speed of the slowest link between learner and engines."""
    ipc_bytes_per_second: PositiveFloat | None = None
    """The same by CUDA IPC, inside one GPU."""

    def price_per_hour(self, learner_devices: float, rollout_devices: float) -> float | None:
        """Return the hourly price of all devices, or None if a price is missing."""
        if self.learner.price_per_hour is None or self.rollout.price_per_hour is None:
            return None
        return learner_devices * self.learner.price_per_hour + rollout_devices * self.rollout.price_per_hour


class SizingSettings(Settings):
    """Assumptions about what is unknown until data are read and completions are sampled."""

    prompt_text_tokens: PositiveInt = 100
    """Mean tokens of a prompt, excluding its image."""
    completion_tokens: PositiveFloat | None = None
    """Mean tokens of a completion; default: the longest, `rollout.max_tokens`."""
    epoch_questions: PositiveInt | None = None
    """Questions of an epoch; default: those of the whole run."""
