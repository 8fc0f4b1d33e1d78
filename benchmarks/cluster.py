"""What a new cluster does: seconds, tokens, utilisation and memory of a few steps in every mode that it allows.

    python -m benchmarks.cluster --dry-run --gpus 8                 the modes of 8 GPUs, with the dry run's estimates
    python -m benchmarks.cluster run.dir=runs/cluster               measure on this machine
    ray job submit --working-dir . -- python -m benchmarks.cluster run.dir=/mnt/shared/cluster
                                                                    measure on a cluster, from its head

Run it before anything else. It needs no model and no data: it makes Qwen2-VL-2B's shape with random weights (4.4 GB)
and questions with images of 384 x 384 pixels. Both are written below `run.dir`, a folder that all nodes must see at
the same path; in a Ray job it may not lie in the submitted copy of the code. Then it trains for a few steps in each
mode. In all of them engines (vLLM) generate completions, ranks (DeepSpeed) learn from them, and the new weights go
back to the engines; modes differ in:

  ranks, engines    how many GPUs learn and how many generate: the even split in every way below, others by nccl
  sync, async       engines wait while ranks learn, or generate meanwhile
  nccl              weights by broadcast from GPU to GPU
  object_store      weights through Ray's object store, in main memory
  ipc               a rank and an engine on each GPU, in turns; weights stay on it

It prints the modes first, and at the end two tables, and one sentence: the fastest mode, what its bottleneck is, and
which setting to change. A mode that fails is a line that says why; the others go on. `run.dir`/cluster.json has all of
it and is written after every mode; docs/performance.md explains each figure. An engine takes minutes to start on a GPU,
so modes that need the same engines share them.

Your own settings count: those of --config, as for `medr1_ray.train`, and those given as key=value, which no mode
varies: with `rollout.actors=2` every mode has 2 engines. Of --config files, model.path, data, run.dir and
reward.functions do not count: the model is made by model.shape, and rewards are a coin's. Given as key=value,
`model.path=FOLDER` and `data.root=FOLDER` are used as they are. Without GPUs, --config configs/phantom_cpu.yaml
measures the tiny shape.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.helpers.cluster.bottleneck import bottleneck
from benchmarks.helpers.cluster.modes import Mode, modes
from benchmarks.helpers.cluster.report import (
    Row,
    as_json,
    estimate,
    first_line,
    measured_tables,
    planned_table,
)
from benchmarks.helpers.cluster.settings import Plan, make_plan
from medr1_ray.base.atomic_files import write_text
from medr1_ray.base.code_digest import code_digest
from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.base.writable_folder import require_writable
from medr1_ray.cluster.address import cluster_address, require_reachable
from medr1_ray.config import Config, as_path
from medr1_ray.config.loading import public_settings

if TYPE_CHECKING:
    from medr1_ray.model.shape import ModelShape

REPORT = "cluster.json"


def run(plan: Plan, chosen: Sequence[Mode], cluster: dict[str, Any], shape: ModelShape) -> list[Row]:
    """Measure the modes one after the other; write the report after each."""
    # After what can be refused: these import torch, transformers and Ray.
    from benchmarks.helpers.cluster.making import make_what_is_missing
    from benchmarks.helpers.cluster.measuring import measure
    from benchmarks.helpers.common import progress
    from benchmarks.helpers.kept_engines import KeptEngines

    make_what_is_missing(plan)
    kept, rows = KeptEngines(), list[Row]()
    try:
        for number, mode in enumerate(chosen, 1):
            progress(f"\nmode {number} of {len(chosen)}: {mode.name}")
            rows.append(measure(plan, mode, shape, kept))
            write_report(plan, rows, cluster)
    finally:
        kept.end()
    return rows


def write_report(plan: Plan, rows: Sequence[Row], cluster: dict[str, Any]) -> None:
    report = {
        "code": code_digest(),
        "cluster": cluster,
        "timed_steps": plan.timed,
        "settings": public_settings(plan.config),
        "bottleneck": bottleneck(rows),
        "modes": as_json(rows),
    }
    write_text(plan.out / REPORT, json.dumps(report, indent=1) + "\n")


def planned(plan: Plan, chosen: Sequence[Mode], shape: ModelShape) -> list[Row]:
    """Return a row for each mode with its estimates, or with why its settings contradict each other."""
    rows = []
    for mode in chosen:
        try:
            rows.append(Row(mode, estimate(plan.config_of(mode), shape)))
        except ValueError as error:
            rows.append(Row(mode, failed=first_line(error)))
    return rows


def nodes_of(config: Config) -> list[dict[str, float]]:
    """Return the resources of each node of the cluster that the settings name, or of this machine.

    Raises ValueError where the cluster does not answer.
    """
    import torch

    _, address = cluster_address(config)
    if not address:
        return [{"GPU": float(torch.cuda.device_count())}]
    require_reachable(config)
    import ray

    from medr1_ray.cluster.placement import alive_nodes

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        # Addresses are among the resources, and say nothing about what a node can do.
        return [
            {name: amount for name, amount in node["Resources"].items() if not name.startswith("node:")}
            for node in alive_nodes()
        ]
    finally:
        ray.shutdown()


def parser() -> argparse.ArgumentParser:
    made = ArgumentParser(
        prog="python -m benchmarks.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--config", type=as_path, action="append", default=[], metavar="FILE", help="YAML; later files win")
    add("--gpus", type=int, metavar="N", help="plan for so many GPUs (default: those that the cluster has now)")
    add("--steps", type=int, default=3, metavar="N", help="timed steps of each mode (default: 3), after a warm-up")
    add("--only", default="", metavar="TEXT", help="only modes whose name contains this, e.g. 'nccl, sync'")
    add("--dry-run", action="store_true", help="print the modes and the dry run's estimates alone")
    add("overrides", nargs="*", metavar="key.sub=value", help="settings that win over the files")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_intermixed_args(arguments)

    def work(ending: Ending) -> int:
        for name, least in (("steps", 1), ("gpus", 0)):
            given = getattr(options, name)
            if given is not None and given < least:
                raise ValueError(f"--{name} {given}: give a whole number from {least} on")
        plan, chosen, cluster = _planned(options)
        from medr1_ray.model.shape import read_shape

        shape = read_shape(plan.shape or plan.config.model.shape or plan.config.model.folder)
        _say(planned_table(as_json(planned(plan, chosen, shape))))
        if options.dry_run:
            return 0
        require_writable(f"run.dir={str(plan.out)!r}", plan.out)
        ending.how_to_go_on = lambda: _what_is_there(plan.out)
        rows = run(plan, chosen, cluster, shape)
        _say(f"\n{measured_tables(as_json(rows))}\n\n{bottleneck(rows)}\n\nall of it is in {plan.out / REPORT}")
        return 0 if any(row.failed is None for row in rows) else 1

    return run_to_status(work)


def _planned(options: argparse.Namespace) -> tuple[Plan, list[Mode], dict[str, Any]]:
    """Return the plan, its modes, and what the cluster has."""
    # The size of the default step depends on the GPUs, which a cluster tells that the settings name.
    given = make_plan(options.config, options.overrides, options.gpus or 0, options.steps)
    nodes = nodes_of(given.config) if options.gpus is None else []
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if options.gpus is None else options.gpus
    plan = make_plan(options.config, options.overrides, gpus, options.steps)
    every = modes(gpus, plan.config, plan.fixed)
    chosen = [mode for mode in every if options.only in mode.name]
    if not chosen:
        raise ValueError(f"--only {options.only!r}: no mode has this in its name; there are {[m.name for m in every]}")
    return plan, chosen, {"gpus": gpus, "nodes": nodes}


def _what_is_there(out: Path) -> str:
    there = out / REPORT
    return f"what was measured so far is in {there}" if there.exists() else "nothing was measured yet"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
