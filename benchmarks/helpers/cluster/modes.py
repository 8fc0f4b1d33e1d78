"""Which modes a cluster allows: how its GPUs are split, how weights travel, whether generation overlaps the update."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from medr1_ray.config import Config

COLOCATED_SHARE = 0.25
"""Of a card's memory, vLLM's part where it shares the card with a learner rank."""


@dataclass(frozen=True)
class Mode:
    """One way to run: `ranks` learner ranks and `engines` rollout actors, with or without GPUs of their own.

    `max_staleness` 0 is synchronous. `settings` are the overrides that make a run of this mode.
    """

    ranks: int
    engines: int
    transport: str
    max_staleness: int
    settings: tuple[str, ...]
    colocated: bool = False

    @property
    def name(self) -> str:
        split = f"{_count(self.ranks, 'rank')}, {_count(self.engines, 'engine')}"
        shared = " on the same GPUs" if self.colocated else ""
        return f"{split}{shared}, {self.transport}, {'async' if self.max_staleness else 'sync'}"

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        shared = "-colocated" if self.colocated else ""
        kind = "async" if self.max_staleness else "sync"
        return f"{self.ranks}-ranks-{self.engines}-engines{shared}-{self.transport}-{kind}"


def modes(gpus: int, config: Config, fixed: Collection[str] = ()) -> list[Mode]:
    """Return the modes of a cluster of so many GPUs, those first that say most; those with the same engines lie next to
    each other, so that these need not be started again.

    Args:
        config: the settings that the modes have in common. It decides whether the actors are on GPUs at all.
        fixed: keys that were given for all modes, e.g. `rollout.actors`: they keep the value of `config`.

    Raises:
        ValueError: there are not enough GPUs for any mode.
    """
    learner, rollout = config.learner, config.rollout
    if not (learner.gpus_per_rank and rollout.gpus_per_actor):
        found = list(_without_gpus(config, fixed))
    else:
        found = [*_apart(gpus, config, fixed), *_shared(gpus, config, fixed)]
    allowed = [mode for mode in found if _is_as_given(mode, config, fixed)]
    if not allowed:
        kept = f" and {', '.join(sorted(fixed))} as given" if fixed else ""
        raise ValueError(
            f"no mode is possible on {_count(gpus, 'GPU')} with learner.gpus_per_rank={learner.gpus_per_rank:g}, "
            f"rollout.gpus_per_actor={rollout.gpus_per_actor:g}{kept}. Give fewer settings as key=value, add GPUs, "
            "plan for others with --gpus N (those that a cluster may grow to), or measure the tiny shape without GPUs: "
            "--config configs/phantom_cpu.yaml"
        )
    return allowed


def _without_gpus(config: Config, fixed: Collection[str]) -> Iterator[Mode]:
    ranks, engines = config.learner.world_size, config.rollout.actors
    for count in dict.fromkeys((engines, *(() if is_fixed("rollout.actors", fixed) else (1,)))):
        for staleness in _stalenesses(config):
            yield Mode(ranks, count, "object_store", staleness, _settings(ranks, count, "object_store", staleness))


def _apart(gpus: int, config: Config, fixed: Collection[str]) -> Iterator[Mode]:
    """Learner and engines on GPUs of their own."""
    given = config.learner.gpus_per_rank, config.rollout.gpus_per_actor
    per_rank, per_engine = (max(1, int(amount)) for amount in given)
    splits = _splits(gpus, per_rank, per_engine, config, fixed)
    devices = ("cluster.colocated=false", f"learner.gpus_per_rank={per_rank}", f"rollout.gpus_per_actor={per_engine}")
    for number, (ranks, engines) in enumerate(splits):
        # The others differ in how weights travel as the first does.
        for transport in ("nccl", "object_store") if number == 0 or "cluster.weight_transport" in fixed else ("nccl",):
            for staleness in _stalenesses(config):
                settings = (*_settings(ranks, engines, transport, staleness), *devices)
                yield Mode(ranks, engines, transport, staleness, settings)


def _splits(
    gpus: int, per_rank: int, per_engine: int, config: Config, fixed: Collection[str]
) -> list[tuple[int, int]]:
    """Return pairs of ranks and engines that use the GPUs, the most even one first."""
    most = (gpus - per_rank) // per_engine
    ranks_of = {engines: (gpus - engines * per_engine) // per_rank for engines in range(1, most + 1)}
    if is_fixed("learner.world_size", fixed):
        given = config.learner.world_size
        ranks_of = {engines: given for engines, room in ranks_of.items() if room >= given}
    wanted = {1, most // 4, (most + 1) // 2, most - most // 4, most}
    if is_fixed("rollout.actors", fixed):
        wanted = {config.rollout.actors}
    pairs = [(ranks, engines) for engines, ranks in ranks_of.items() if engines in wanted]
    return sorted(pairs, key=lambda pair: (abs(pair[0] * per_rank - pair[1] * per_engine), pair[1]))


def _shared(gpus: int, config: Config, fixed: Collection[str]) -> Iterator[Mode]:
    """A learner rank and an engine on each GPU, in turns."""
    count = config.learner.world_size if is_fixed("learner.world_size", fixed) else gpus
    if not 1 <= count <= gpus or config.rollout.tensor_parallel_size > 1:
        return
    devices = ["cluster.colocated=true", "learner.gpus_per_rank=0.5", "rollout.gpus_per_actor=0.5"]
    if "gpu_memory_utilization" not in config.rollout.engine:
        devices.append(f"rollout.engine.gpu_memory_utilization={COLOCATED_SHARE}")
    # Without GPUs apart there is nothing else to compare it with.
    for transport in ("ipc", "object_store") if gpus == 1 or "cluster.weight_transport" in fixed else ("ipc",):
        yield Mode(count, count, transport, 0, (*_settings(count, count, transport, 0), *devices), colocated=True)


def _stalenesses(config: Config) -> tuple[int, ...]:
    """Return that of synchronous training, and one with which generation overlaps the update, where that may be."""
    if config.loss.importance_cap is None:
        return (0,)
    return 0, max(config.train.max_staleness, config.train.steps_per_rollout)


def _settings(ranks: int, engines: int, transport: str, max_staleness: int) -> tuple[str, ...]:
    return (
        f"learner.world_size={ranks}",
        f"rollout.actors={engines}",
        "rollout.min_actors=null",
        "rollout.max_actors=null",
        f"cluster.weight_transport={transport}",
        f"train.max_staleness={max_staleness}",
    )


def is_fixed(key: str, fixed: Collection[str]) -> bool:
    """Return whether a key, or the section or mapping that it lies in, was given."""
    parts = key.split(".")
    return any(".".join(parts[:depth]) in fixed for depth in range(1, len(parts) + 1))


def _is_as_given(mode: Mode, config: Config, fixed: Collection[str]) -> bool:
    given = {
        "learner.world_size": (config.learner.world_size, mode.ranks),
        "rollout.actors": (config.rollout.actors, mode.engines),
        "cluster.weight_transport": (config.cluster.weight_transport, mode.transport),
        "cluster.colocated": (config.cluster.colocated, mode.colocated),
        "train.max_staleness": (config.train.max_staleness, mode.max_staleness),
    }
    return all(wanted == has for key, (wanted, has) in given.items() if is_fixed(key, fixed))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
