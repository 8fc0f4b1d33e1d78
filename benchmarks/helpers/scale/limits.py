"""What each part of a cluster could sustain by itself, in groups a second, and which is the lowest.

CALCULATED, without queues: parts that work at the same time are as fast as the slowest of them. Driver, encoder actors
and reward actors have the processor seconds that were measured; engines, learner and weight sync have `sizing`'s
estimates on the rates of a file of configs/hardware, none of which was measured in a training on GPUs. Not in it: what
the learner's requests cost the driver, the ranks' gradient exchange, waiting, and memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.helpers.shapes import ROOT
from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.model.shape import read_shape
from medr1_ray.sizing.time import Split, best_split

GPUS = (8, 16, 64, 256, 1000)
GROUP_SIZE = 8
"""As in what is measured."""
GROUPS_PER_GPU = 16
"""Assumed: a step of so many groups for each GPU, so that a larger cluster takes larger steps."""
DRIVER_CORES = 1.0
"""Assumed: what all of the driver's threads get together, at least: Python's take turns, Ray's own in C++ do not."""
ENCODER_CORES = 1.0
"""Assumed: what an encoder actor gets of its four threads, in cores."""
NODE_BYTES_PER_SECOND = 1.75e9
"""Assumed: what leaves the encoders' node, the driver's, at most: 70 % of 20 Gbit/s."""
READERS_OF_AN_IMAGE = 2
"""The engine of a group and its learner rank, at most: either may have it from the other, or share its node."""
AIMS_SECONDS = (0.6e-3, 0.2e-3)
"""Of the driver's processor, for a group: what it is to come to."""
ON_THE_GPUS = ("engines", "learner", "sync")


@dataclass(frozen=True)
class Mode:
    """A training: its settings, and the tokens of a completion, on average, which are assumed."""

    name: str
    config: str
    completion_tokens: int


MODES = (
    Mode("2B No-Think", "medr1_qwen2vl_2b_nothink.yaml", 10),
    Mode("2B Think", "medr1_qwen2vl_2b_think.yaml", 150),
)


@dataclass(frozen=True)
class Costs:
    """Processor seconds of a group, and the bytes without pixels that its processes send each other."""

    driver_seconds: float
    encoder_seconds: float
    reward_seconds: float
    sent_bytes: float


@dataclass(frozen=True)
class Cluster:
    """A size of a cluster: the settings of a run on it, and the fastest split of its GPUs."""

    config: Config
    split: Split

    @property
    def gpus(self) -> int:
        """Of learner and engines."""
        return self.split.ranks + self.split.actors

    @property
    def engine_seconds(self) -> float:
        """An engine's time for a group: the slower, the fewer groups it answers in a call."""
        return self.split.time.rollout_seconds * self.split.actors / self.config.train.prompts_per_step


@dataclass(frozen=True)
class Limits:
    """The groups a second that each part of a cluster could sustain, by its name; `step` is that of the GPUs' parts
    together: engines and learner at the same time, the weight sync after them."""

    rates: Mapping[str, float]
    step: float

    @property
    def together(self) -> float:
        """Groups a second of all parts."""
        return min(self.step, *(rate for part, rate in self.rates.items() if part not in ON_THE_GPUS))

    @property
    def bottlenecks(self) -> list[str]:
        """What holds the cluster up, the slowest first: all parts beside the GPUs that are slower than they are, or
        where there is none, the GPUs' slowest part."""
        beside = [part for part, rate in self.rates.items() if part not in ON_THE_GPUS and rate < self.step]
        return sorted(beside, key=self.rates.__getitem__) or [min(ON_THE_GPUS, key=self.rates.__getitem__)]


def clusters(mode: Mode, hardware: Path) -> list[Cluster]:
    """Return a cluster of each size of `GPUS`. Rollouts overlap updates.

    Raises ValueError if `hardware` cannot be read or has no rates.
    """
    found = []
    for gpus in GPUS:
        config = load_config(
            [ROOT / "configs" / mode.config, hardware],
            [
                f"train.prompts_per_step={GROUPS_PER_GPU * gpus}",
                f"train.group_size={GROUP_SIZE}",
                "train.max_staleness=1",
                "learner.world_size=1",
                f"rollout.actors={gpus - 1}",  # `best_split` deals out their sum
                f"sizing.completion_tokens={mode.completion_tokens}",
            ],
        )
        assert config.model.shape is not None
        found.append(Cluster(config, best_split(config, read_shape(config.model.shape))))
    return found


def limits(cluster: Cluster, costs: Costs) -> Limits:
    """Return what each part of a cluster could sustain at these costs."""
    config, time, groups = cluster.config, cluster.split.time, cluster.config.train.prompts_per_step
    image_bytes = READERS_OF_AN_IMAGE * 3 * config.data.image_size**2
    rates = {
        "engines": groups / time.rollout_seconds,
        "learner": groups / time.update_seconds,
        "sync": groups / time.weight_sync_seconds if time.weight_sync_seconds else math.inf,
        "driver": DRIVER_CORES / costs.driver_seconds,
        "encoders": config.data.encoders * ENCODER_CORES / costs.encoder_seconds,
        "images": NODE_BYTES_PER_SECOND / (image_bytes + costs.sent_bytes),
        "rewards": config.reward.actors / costs.reward_seconds,
    }
    return Limits(rates, groups / time.seconds)


def gpus_to_fill(driver_seconds: float, largest: Cluster) -> int:
    """Return the number of GPUs from which on a driver of this cost is slower than they are, taking the largest
    cluster's rate for each GPU."""
    for_each_gpu = largest.config.train.prompts_per_step / largest.split.time.seconds / largest.gpus
    return math.ceil(DRIVER_CORES / driver_seconds / for_each_gpu)


def table(sizes: Sequence[Cluster], costs: Costs) -> str:
    """Return a row for each cluster: what each part could sustain by itself, in groups a second."""
    found = [limits(size, costs) for size in sizes]
    rows = [("GPUs", "ranks + engines", *found[0].rates, "step", "all", "lowest")]
    for size, each in zip(sizes, found, strict=True):
        cells = (f"{rate:,.0f}" for rate in (*each.rates.values(), each.step, each.together))
        rows.append((f"{size.gpus:,}", f"{size.split.ranks} + {size.split.actors}", *cells, each.bottlenecks[0]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def verdict(sizes: Sequence[Cluster], costs: Costs) -> list[str]:
    """Return what the bottleneck of each size is and what to change, what comes after it, and the GPUs that fill the
    driver."""
    said = []
    for _, group in itertools.groupby(sizes, key=lambda size: limits(size, costs).bottlenecks[0]):
        alike = list(group)
        found, last = limits(alike[-1], costs), f" to {alike[-1].gpus:,}" if len(alike) > 1 else ""
        first, *others = (_remedy(part, found, alike[-1].config) for part in found.bottlenecks)
        then = "".join(f"\n    then, at {alike[-1].gpus:,}, {other}" for other in others)
        said.append(f"{alike[0].gpus:,}{last} GPUs: the bottleneck is {first}{then}")
    aims = [aim for aim in AIMS_SECONDS if aim < costs.driver_seconds]
    filled = ", ".join(f"from {gpus_to_fill(aim, sizes[-1]):,} at {1000 * aim:g} ms" for aim in aims)
    said.append(
        f"the driver is slower than the GPUs from {gpus_to_fill(costs.driver_seconds, sizes[-1]):,} GPUs on at the "
        f"{1000 * costs.driver_seconds:.2f} ms a group measured{f'; {filled}' if filled else ''}"
    )
    return said


def _remedy(part: str, found: Limits, config: Config) -> str:
    """Return a part in plain words, and what lets it do more."""
    # Before the driver is mended, for which there is no setting, no more than it can hand out.
    driver = found.rates["driver"]
    wanted = found.step if found.rates[part] > driver else min(found.step, driver)

    def enough(count: int) -> int:
        return math.ceil(wanted / (found.rates[part] / count))

    return {
        "engines": "generation in the engines: add GPUs (rollout.actors)",
        "learner": "the update in the learner: add GPUs (learner.world_size)",
        "sync": "the weight sync: raise train.prompts_per_step, or use faster links from learner to engines",
        "driver": "the driver: no setting helps, a group must cost it less (medr1_ray/pool)",
        "encoders": f"the encoder actors: set data.encoders={enough(config.data.encoders)}",
        "images": "the network of the node that images leave: spread the encoders (cluster.labels.encoder)",
        "rewards": f"the reward actors: set reward.actors={enough(config.reward.actors)}",
    }[part]
