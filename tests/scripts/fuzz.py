"""Files with bytes changed at random are read, or refused by an error of ours: `python -m tests.scripts.fuzz 100000`.

Kinds: a checkpoint's state, manifest and optimizer state; recorded groups; settings; a table. Any other exception, any
file that is opened outside of the file's folder, and memory beyond 4 GiB is a fault and ends the script.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medr1_ray.base.manifest import find_damage, store, write_manifest
from medr1_ray.config import DataSettings
from medr1_ray.config.loading import config_yaml, load_config
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.stream import StreamState
from medr1_ray.learner.messages import Gap
from medr1_ray.learner.optimizer_files import KINDS, OptimizerFiles, write_shard, write_summary
from medr1_ray.records.checkpoints import Checkpoints, RunState, read_state
from medr1_ray.records.recorded_groups import read_groups, write_groups
from medr1_ray.records.summary import Totals
from tests.faults.files import changed
from tests.faults.storage import publish
from tests.repository import REPOSITORY
from tests.unit.records.recorded import a_group

MEMORY_BYTES = 4 * 2**30
# Modules are imported when they are needed first.
LIBRARIES = (sys.prefix, sys.base_prefix, str(REPOSITORY), "/proc", "/sys", "/dev")


def a_checkpoint(folder: Path) -> None:
    totals = Totals(32, {"rollout": 1.5}, Gap(1e-6, 1e-4, 99), {"asked": 2, "lost": 1})
    state = RunState(3, StreamState(0, "d"), ("0.1:q",), 4, 1, {"stale": 2}, 0, 0, totals, "c", 0, 7)
    publish(Checkpoints(folder, keep=1), state, lambda partial: [])


def a_manifest(folder: Path) -> None:
    (folder / "one").write_text("content")
    write_manifest(folder, [store(folder, "one")])


def an_optimizer(folder: Path) -> None:
    write_shard(folder, 0, [("weight", 0, {kind: torch.arange(6.0) for kind in KINDS})])
    write_summary(folder, 3, {"weight": 6})


def settings_file(folder: Path) -> None:
    config = load_config([REPOSITORY / "configs" / "phantom_cpu.yaml"], ["learner.warmup_steps=1", "run.dir=r"])
    (folder / "base.yaml").write_text("rollout: {actors: 2}\n")
    (folder / "config.yaml").write_text("base: base.yaml\n" + config_yaml(config))


def groups_file(folder: Path) -> None:
    write_groups(folder, 1, [a_group(), replace(a_group(), advantages=np.zeros(2, np.float32))])


def a_table(folder: Path) -> None:
    for i in range(8):
        Image.new("RGB", (30, 30), (30 * i, 0, 0)).save(folder / f"{i}.png")
    rows = [f"{i}.png,What is {i}?,CT,MRI,{'AB'[i % 2]},CT" for i in range(8)]
    (folder / "questions.csv").write_text("\n".join(["image,question,A,B,answer,modality", *rows]) + "\n")


def read_table(folder: Path) -> object:
    table = {"file": "questions.csv"}
    settings = {"format": "table", "root": folder, "table": table, "eval_questions": 2}
    return open_dataset(DataSettings.model_validate(settings))


# What makes a folder, the file whose bytes are changed, and what reads it.
TARGETS: dict[str, tuple[Callable[[Path], None], str, Callable[[Path], object]]] = {
    "state.json": (a_checkpoint, "checkpoint-3/state.json", lambda folder: read_state(folder / "checkpoint-3")),
    "manifest.json": (a_manifest, "manifest.json", find_damage),
    "optimizer.json": (an_optimizer, "optimizer.json", OptimizerFiles),
    "optimizer shard": (an_optimizer, "optimizer-00000-00000.safetensors", OptimizerFiles),
    "recorded groups": (groups_file, "step-000001.safetensors", lambda folder: read_groups(folder, 1)),
    "settings": (settings_file, "config.yaml", lambda folder: load_config([folder / "config.yaml"])),
    "table": (a_table, "questions.csv", read_table),
}


def main() -> int:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    chance, ends = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        allowed: list[str] = []
        opened: list[str] = []

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event == "open" and allowed and isinstance(arguments[0], str | bytes | os.PathLike):
                path = os.path.realpath(os.fsdecode(arguments[0]))
                if not path.startswith((allowed[0], *LIBRARIES)):
                    opened.append(path)

        sys.addaudithook(watch)
        for number in range(count):
            kind = list(TARGETS)[number % len(TARGETS)]
            make, file, read = TARGETS[kind]
            folder = Path(name) / kind.replace(" ", "-")
            if not folder.exists():
                folder.mkdir()
                make(folder)
                read(folder)  # or nothing below would tell anything
                (folder / ".original").write_bytes((folder / file).read_bytes())
            content = changed((folder / ".original").read_bytes(), chance)
            (folder / file).write_bytes(content)
            allowed[:] = [os.path.realpath(name)]
            try:
                read(folder)
                how = "read"
            except ValueError as error:
                how = "refused" if type(error) is ValueError and str(error) else f"a {type(error).__name__}"
            except Exception as error:
                how = f"a {type(error).__name__}"
            allowed.clear()
            if how.startswith("a ") or opened:
                print(f"{kind}: {how} {opened} after bytes {content[:2000]!r}")
                return 1
            ends[f"{kind}: {how}"] += 1
    for how, number in sorted(ends.items()):
        print(f"{number:7}  {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
