"""What a run would be, without starting any of it: settings, actors, memory. Needs no checkpoint at hand."""

from __future__ import annotations

from collections.abc import Sequence

from medr1_ray.config import Config
from medr1_ray.config_loading import config_digest, config_yaml
from medr1_ray.demand import demands
from medr1_ray.sizing import Part, learner_parts, read_shape, rollout_parts, weight_sync_bytes

REWARD_ACTOR_BYTES = 256 * 2**20
DRIVER_BYTES = 2**30


def dry_run(config: Config) -> str:
    """The resolved settings, the actors with their CPUs, GPUs and memory, and memory by part; about 110 columns.

    Raises:
        ValueError: neither `model.shape` nor `model.path` has the model's config.json.
    """
    shape = read_shape(config.model.shape or config.model.folder)
    of_learner, of_rollout = learner_parts(config, shape), rollout_parts(config, shape)
    on_gpu = {"learner rank": config.learner.gpus_per_rank > 0, "rollout actor": config.rollout.gpus_per_actor > 0}
    memory = {
        "learner rank": _totals(of_learner, on_gpu["learner rank"]),
        "rollout actor": _totals(of_rollout, on_gpu["rollout actor"]),
        "reward actor": (0, REWARD_ACTOR_BYTES),
    }
    actors = [
        (d.name, str(d.count), f"{d.cpus:g}", f"{d.gpus:g}", *(_size(bytes_) for bytes_ in memory[d.name]))
        for d in demands(config)
    ]
    actors.append(("driver", "1", "0", "0", _size(0), _size(DRIVER_BYTES)))
    cpus, gpus = (sum(getattr(d, kind) * d.count for d in demands(config)) for kind in ("cpus", "gpus"))
    sections = [
        f"Settings (digest {config_digest(config)})",
        config_yaml(config).rstrip(),
        f"\nModel: {shape.architecture}, {shape.parameters:,} parameters, {shape.vision_parameters:,} of them vision",
        "\nActors",
        _table(("actor", "count", "CPUs each", "GPUs each", "GPU memory each", "main memory each"), actors, right=5),
        f"Ray must have {cpus:g} CPUs and {gpus:g} GPUs, and a node's object store and /dev/shm "
        f"{_size(weight_sync_bytes(config, shape))} for a weight sync.",
        "\nMemory of each learner rank (estimate)",
        _part_table(of_learner, on_gpu["learner rank"]),
        "\nMemory of each rollout actor (estimate; of each of its GPUs)",
        _part_table(of_rollout, on_gpu["rollout actor"]),
    ]
    return "\n".join(sections)


def _totals(parts: Sequence[Part], on_gpu: bool) -> tuple[int, int]:
    """Bytes of GPU memory and of main memory."""
    gpu = sum(part.bytes for part in parts if on_gpu and part.place == "device")
    return gpu, sum(part.bytes for part in parts) - gpu


def _part_table(parts: Sequence[Part], on_gpu: bool) -> str:
    rows = []
    for part in parts:
        gpu, main = _totals([part], on_gpu)
        rows.append((part.name, _size(gpu) if gpu else "", _size(main) if main else "", part.how))
    gpu, main = _totals(parts, on_gpu)
    rows.append(("in all", _size(gpu), _size(main), ""))
    return _table(("part", "GPU memory", "main memory", "how"), rows, right=2)


def _size(size: int) -> str:
    if size == 0:
        return "0"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> str:
    """Columns as wide as needed; those from the second to number `right`, counted from 0, are flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if 1 <= i <= right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
