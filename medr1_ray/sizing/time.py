"""Time of a training step on given hardware, the best split of its devices, and the cost of an epoch.

Applies the formulas of docs/sizing.md to the work counted in `sizing/work.py`; `benchmarks/sizing_calibration.py`
compares the results with measurements. A device is a GPU, or a process on its own cores where there are no GPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medr1_ray.config import Config, Device
from medr1_ray.model.operations import Work
from medr1_ray.model.shape import ModelShape
from medr1_ray.sizing.memory import DTYPE_BYTES, synced_parameters
from medr1_ray.sizing.work import StepSize, learner_work, rollout_work


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of a step; `overlapped` if generation continues during the update."""

    rollout_seconds: float
    update_seconds: float
    weight_sync_seconds: float
    overlapped: bool

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        if self.overlapped:
            return max(self.rollout_seconds, self.update_seconds) + self.weight_sync_seconds
        return self.rollout_seconds + self.update_seconds + self.weight_sync_seconds


@dataclass(frozen=True)
class Split:
    """A number of learner ranks and of rollout actors, and the step time with them."""

    ranks: int
    actors: int
    time: StepTime


@dataclass(frozen=True)
class EpochCost:
    """Steps, hours and price of an epoch on all devices; `price` is None if a `hardware.*.price_per_hour` is unset."""

    steps: int
    hours: float
    price: float | None


def step_size(config: Config) -> StepSize:
    """Return the size of the configured step, under the assumptions of `sizing`."""
    return StepSize(
        prompts=config.train.prompts_per_step,
        group_size=config.completions_per_prompt,
        completion_tokens=config.sizing.completion_tokens or config.rollout.max_tokens,
        image_size=config.data.image_size,
        text_tokens=config.sizing.prompt_text_tokens,
    )


def device_seconds(work: Work, device: Device) -> float:
    """Return the seconds that one device needs for `work`, without overlap; work whose rate is not set takes no time.

    Raises ValueError if the rate of matrix products is not set.
    """
    products = device.matmul_flops_per_second
    if products is None:
        raise ValueError(
            "hardware.learner.matmul_flops_per_second and hardware.rollout.matmul_flops_per_second must be set to "
            "estimate times; add one of configs/hardware/ with --config"
        )
    seconds = work.matmul_flops / products
    seconds += work.attention_flops / (device.attention_flops_per_second or products)
    seconds += work.activation_bytes / (device.activation_bytes_per_second or math.inf)
    seconds += work.memory_bytes / (device.memory_bytes_per_second or math.inf)
    return seconds + work.layer_starts * device.layer_seconds


def step_time(config: Config, shape: ModelShape, size: StepSize, ranks: int, actors: int) -> StepTime:
    """Return the time of a step of `size` with `ranks` learner ranks and `actors` rollout actors; SFT has only updates.

    Raises ValueError if `hardware` has no rates.
    """
    hardware = config.hardware
    megapixels = -(-size.prompts // ranks) * size.image_size**2 / 1e6
    update = device_seconds(learner_work(config, shape, size, ranks), hardware.learner)
    update += megapixels * hardware.image_seconds_per_megapixel
    if config.objective == "sft":
        return StepTime(0.0, update, 0.0, overlapped=False)
    prompts = -(-size.prompts // actors)
    completions = prompts * size.group_size
    rollout = device_seconds(rollout_work(config, shape, size, actors), hardware.rollout)
    rollout += prompts * hardware.prompt_seconds + completions * hardware.completion_seconds
    rollout += completions * size.completion_tokens * hardware.token_seconds
    sync = sync_seconds(config, shape).get(config.cluster.weight_transport, hardware.sync_seconds)
    return StepTime(rollout, update, sync, config.train.overlaps)


def sync_seconds(config: Config, shape: ModelShape) -> dict[str, float]:
    """Return the time of a weight sync by each transport whose rate `hardware` has."""
    hardware, sync_bytes = config.hardware, synced_parameters(config, shape) * DTYPE_BYTES[config.model.dtype]
    rates = {
        "nccl": hardware.nccl_bytes_per_second,
        "ipc": hardware.ipc_bytes_per_second,
        "object_store": hardware.sync_bytes_per_second,
    }
    return {name: hardware.sync_seconds + sync_bytes / rate for name, rate in rates.items() if rate is not None}


def best_split(config: Config, shape: ModelShape) -> Split:
    """Return the split of the run's devices between learner and rollout actors with the shortest step.

    Of equally fast splits, it has the smallest learner. Does not check that the learner's memory suffices.

    Raises ValueError if `hardware` has no rates.
    """
    size = step_size(config)
    per_rank, per_actor = _devices(config)
    devices = config.learner.world_size * per_rank + config.rollout.actors * per_actor
    splits = [
        Split(ranks, actors, step_time(config, shape, size, ranks, actors))
        # Every rank needs a group of each mini-batch.
        for ranks in range(1, min(size.prompts // config.train.minibatches, int((devices - per_actor) // per_rank)) + 1)
        if (actors := int((devices - ranks * per_rank) // per_actor)) >= 1
    ]
    # `min` returns the first of equals: the one with the fewest ranks.
    return min(splits, key=lambda split: split.time.seconds)


def epoch_cost(config: Config, step_seconds: float, ranks: int, actors: int) -> EpochCost:
    """Return the cost of `sizing.epoch_questions` in steps of `step_seconds`, without evaluations and start-up."""
    questions = config.sizing.epoch_questions
    updates = config.train.steps_per_rollout
    steps = (
        config.train.steps // updates if questions is None else -(-questions // config.train.prompts_per_step)
    )
    per_rank, per_actor = _devices(config)
    price = config.hardware.price_per_hour(ranks * per_rank, actors * per_actor)
    hours = steps * step_seconds / 3600
    return EpochCost(steps, hours, None if price is None else price * hours)


def _devices(config: Config) -> tuple[float, float]:
    """Return the devices of a learner rank and of a rollout actor."""
    return config.learner.gpus_per_rank or 1, config.rollout.gpus_per_actor or 1
