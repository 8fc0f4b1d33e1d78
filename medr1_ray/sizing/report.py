"""The report of `--dry-run`: settings, actors, memory and time of a run. Needs config.json, but no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medr1_ray.cluster.address import cluster_address
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config, automatic_transport
from medr1_ray.config.loading import config_digest, config_yaml
from medr1_ray.model.shape import ModelShape, read_shape
from medr1_ray.sizing.memory import (
    Part,
    checkpoint_bytes,
    checkpoints_at_once,
    learner_parts,
    rollout_parts,
    weight_sync_bytes,
)
from medr1_ray.sizing.stored_images import default_store_bytes, stored_image_bytes
from medr1_ray.sizing.time import best_split, epoch_cost, step_size, step_time, sync_seconds

REWARD_ACTOR_BYTES = 256 * 2**20
DRIVER_BYTES = 2**30
_TRANSPORT_NEEDS = {
    "nccl": "learner and engines on GPUs of their own",
    "ipc": "cluster.colocated=true",
    "object_store": "any hardware",
}


def dry_run(config: Config) -> str:
    """Return the report as text of at most about 110 columns.

    It has the resolved settings, the actors with their CPUs, GPUs and memory, memory by use, and, if `hardware` is
    set, the time and price of a step.

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
        f"Ray needs {cpus:g} CPUs and {gpus:g} GPUs.",
        _transport(config, shape),
        *_stored_images(config, shape),
        f"A checkpoint takes {_size(checkpoint_bytes(config, shape))} below run.dir; at most "
        f"{checkpoints_at_once(config)} are there at once.",
        "\nMemory of each learner rank (estimate)",
        _part_table(of_learner, on_gpu["learner rank"]),
        *_rows(config),
        "\nMemory of each rollout actor (estimate, per GPU)",
        _part_table(of_rollout, on_gpu["rollout actor"]),
        "\nTime (estimate, formulas in docs/sizing.md)",
        _time(config, shape),
    ]
    return "\n".join(sections)


def _rows(config: Config) -> list[str]:
    """Return what becomes of groups that are longer than a micro-batch, if they may be."""
    rollout, limit = config.rollout, config.learner.micro_batch_tokens
    given, shortest = f"learner.micro_batch_tokens={limit}", rollout.max_prompt_tokens + rollout.max_tokens
    if shortest > limit:
        return [
            f"{given} is less than rollout.max_prompt_tokens + rollout.max_tokens = {shortest:,}:",
            "a prompt with one completion that is longer goes alone, and the memory above is for the longest.",
        ]
    if rollout.max_prompt_tokens + config.completions_per_prompt * rollout.max_tokens > limit:
        return [f"{given}: a longer group is cut into rows, each with the prompt."]
    return []


def _transport(config: Config, shape: ModelShape) -> str:
    transport, (automatic, why) = config.cluster.weight_transport, automatic_transport(config)
    reason = f": {why}" if transport == automatic else f" (by default it would be {automatic}: {why})"
    line = f"Weights reach the engines by {transport}{reason}."
    if transport == "object_store":
        size = _size(weight_sync_bytes(config, shape))
        line += f"\nA weight sync needs {size} in a node's object store and /dev/shm."
    return line


def _stored_images(config: Config, shape: ModelShape) -> list[str]:
    images = stored_image_bytes(config)
    lines = [f"Images take up to {_size(images)} of the object store on the encoders' node, by default the driver's."]
    if cluster_address(config)[1]:
        most = "A node gives its store 30 % of its memory, unless `ray start --object-store-memory` says otherwise."
        return [*lines, most]
    here, needed = default_store_bytes(), images + weight_sync_bytes(config, shape)
    if here < needed:
        lines += [
            f"This machine's store would be {_size(here)} (30 % of the available memory, at most /dev/shm), too small",
            f"for the {_size(needed)} of a sync and images: Ray would write to disk. Lower data.image_size or",
            "train.prompts_per_step, or run `ray start --head --object-store-memory=BYTES` with a larger /dev/shm.",
        ]
    return lines


def _time(config: Config, shape: ModelShape) -> str:
    if config.hardware.learner.matmul_flops_per_second is None:
        return "  none: hardware is not set; add one of configs/hardware/ with --config"
    size, ranks, actors = step_size(config), config.learner.world_size, config.rollout.actors
    time = step_time(config, shape, size, ranks, actors)
    transport, syncs = config.cluster.weight_transport, sync_seconds(config, shape)
    known = transport in syncs
    sync = f"by {transport}, all rollout actors at once" if known else f"hardware has no rate of {transport}"
    completions = f"{size.prompts} x {size.group_size} completions"
    row = size.row_tokens(shape, config.learner.micro_batch_tokens)
    rows = [
        ("rollout", f"{time.rollout_seconds:,.2f} s", f"{completions}, rollout actors: {actors}"),
        ("update", f"{time.update_seconds:,.2f} s", f"rows of {row:,.0f} tokens, ranks: {ranks}"),
        ("weight sync", f"{time.weight_sync_seconds:,.2f} s", sync),
        ("step", f"{time.seconds:,.2f} s", "rollout overlaps update" if time.overlapped else "sequential"),
    ]
    if config.objective == "sft":
        rows = rows[1:2]
    best = best_split(config, shape)
    lines = [
        _table(("part", "time", "how"), rows, right=1),
        *_transports(config, syncs),
        f"  Best split of these devices: learner.world_size={best.ranks}, rollout.actors={best.actors}, "
        f"{best.time.seconds:,.2f} s per step",
        _epoch(config, "As configured", time.seconds, ranks, actors),
        _epoch(config, "With the best split", best.time.seconds, best.ranks, best.actors),
    ]
    return "\n".join(lines)


def _transports(config: Config, seconds: Mapping[str, float]) -> list[str]:
    """Return a table of the transports that could be chosen, if the times of several are known."""
    if config.objective == "sft" or len(seconds) < 2:
        return []
    rows = [
        (name, f"{seconds[name]:,.2f} s", needs + " (chosen)" * (name == config.cluster.weight_transport))
        for name, needs in _TRANSPORT_NEEDS.items()
        if name in seconds
    ]
    return ["", _table(("weight sync by", "time", "needs"), rows, right=1), ""]


def _epoch(config: Config, what: str, step_seconds: float, ranks: int, actors: int) -> str:
    epoch = epoch_cost(config, step_seconds, ranks, actors)
    unit = "the run" if config.sizing.epoch_questions is None else "an epoch"
    price = "hardware.*.price_per_hour is not set" if epoch.price is None else f"price {epoch.price:,.2f}"
    return f"  {what}, {unit} of {epoch.steps:,} steps takes {epoch.hours:,.2f} h; {price}"


def _totals(parts: Sequence[Part], on_gpu: bool) -> tuple[int, int]:
    """Return bytes of GPU memory and of main memory."""
    gpu = sum(part.bytes for part in parts if on_gpu and part.place == "device")
    return gpu, sum(part.bytes for part in parts) - gpu


def _part_table(parts: Sequence[Part], on_gpu: bool) -> str:
    rows = []
    for part in parts:
        gpu, main = _totals([part], on_gpu)
        rows.append((part.name, _size(gpu) if gpu else "", _size(main) if main else "", part.how))
    gpu, main = _totals(parts, on_gpu)
    rows.append(("total", _size(gpu), _size(main), ""))
    return _table(("part", "GPU memory", "main memory", "how"), rows, right=2)


def _size(size: int) -> str:
    if size == 0:
        return "0"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> str:
    """Return an aligned table; columns 1 to `right`, counted from 0, are flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if 1 <= i <= right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
