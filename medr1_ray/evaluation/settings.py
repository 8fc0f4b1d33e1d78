"""Settings for evaluating a checkpoint: by default those that it was trained with.

Prompt template, image size and length limits are thus the same in training and evaluation, without repeating them on
the command line. A checkpoint that no run of this package wrote gets the defaults of `medr1_ray.config`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.data.readers.manifest import MANIFEST_FILE

# The filters and weights of the training data do not apply to the evaluation.
_ALL_QUESTIONS = (
    "data.modalities=[]",
    "data.question_types=[]",
    "data.sampling_weights={}",
    "data.pass_rates=null",
    "data.min_pass_rate=0",
    "data.max_pass_rate=1",
)
_NO_TABLE = ("data.table=null", "data.image_root=null")
# Settings that the schema requires and an evaluation does not use.
_REQUIRED = ("train.steps=1", "train.updates_per_rollout=1")


def evaluation_config(
    checkpoint: Path,
    *,
    data: Path,
    split: str,
    mode: str | None,
    out: Path | None,
    files: Sequence[Path],
    overrides: Sequence[str],
) -> Config:
    """Return the settings for evaluating a checkpoint on the data in `data`.

    Overrides take precedence over the other arguments, and these over files.

    Raises:
        ValueError: a setting is not valid, or the format of the data is unknown.
    """
    given = [f"data.root={json.dumps(str(data.parent if data.is_file() else data))}", "run.dir=runs/evaluations"]
    held_out_part = [f"data.eval_part={json.dumps(split)}"] if split in ("validation", "test") else []
    if not files:
        files, given = _of_its_run(checkpoint), [*given, *_ALL_QUESTIONS]
    if (data / MANIFEST_FILE).exists():
        name, _, part = split.partition("/")
        # The settings need a held-out part in any case; `evaluate._read` replaces its questions by those of training.
        held_out = "test" if part == "train" else part or "test"
        given += [*_NO_TABLE, "data.format=prepared"]
        given += [f"data.split={json.dumps(name)}", f"data.eval_part={json.dumps(held_out)}"]
    elif (data / "QA_information").is_dir():
        given += [*_NO_TABLE, "data.format=omnimedvqa"]
    elif data.is_file():
        # Columns and the images' folder stay those of the training, if it read a table.
        given += ["data.format=table", f"data.table.file={json.dumps(data.name)}", *held_out_part]
    elif files:
        given += held_out_part
    else:
        raise ValueError(
            f"--data {data} has neither a manifest nor QA_information, so its format is unknown; give a folder written "
            "by data.prepare, one in OmniMedVQA's layout, or a table's file, or the data settings with --config"
        )
    config = _load(checkpoint, mode, files, given, overrides)
    part_of(config, split)
    named = f"{data.name}-{split}-{config.mode}".replace("/", "-")
    return without_learner(config, out or config.run.dir / model_name(checkpoint) / named)


def answering_config(
    checkpoint: Path, *, mode: str | None, files: Sequence[Path], overrides: Sequence[str]
) -> Config:
    """Return the settings for answering questions that belong to no dataset.

    Raises:
        ValueError: a setting is not valid.
    """
    given = [*_NO_TABLE, "data.format=omnimedvqa", "data.root=unused", "run.dir=runs/answers"]
    config = _load(checkpoint, mode, files or _of_its_run(checkpoint), given, overrides)
    return without_learner(config, config.run.dir)


def part_of(config: Config, split: str) -> str:
    """Return the part of the data that `split` names: `train`, or a held-out part.

    Raises:
        ValueError: there is no such part.
    """
    if config.data.format == "prepared":
        part, allowed = split.partition("/")[2] or "test", ["train", "validation", "test"]
    else:
        part = split
        allowed = ["train", "validation", "test"] if config.data.format == "table" else ["train", "test"]
    if part not in allowed:
        raise ValueError(f"--split {split!r}: the data has no part {part!r}; it has {', '.join(allowed)}")
    return part


def without_learner(config: Config, folder: Path) -> Config:
    """Return the settings for engines without a learner, writing to `folder`; the default parser grades the answers."""
    learner = config.learner.model_copy(update={"world_size": 1, "gpus_per_rank": 0.0})
    reward = config.reward.model_copy(update={"functions": {"accuracy": 1.0}})
    run = config.run.model_copy(update={"dir": folder.absolute()})
    return config.model_copy(update={"learner": learner, "reward": reward, "run": run})


def _load(
    checkpoint: Path, mode: str | None, files: Sequence[Path], given: Sequence[str], overrides: Sequence[str]
) -> Config:
    model = [f"model.path={json.dumps(str(checkpoint))}", *([f"mode={mode}"] if mode else [])]
    return load_config(files, [*model, *given, *_REQUIRED, *overrides])


def _of_its_run(checkpoint: Path) -> list[Path]:
    run = checkpoint.parent.parent / "config.yaml"
    return [run] if run.exists() else []


def model_name(checkpoint: Path) -> str:
    """Return a checkpoint's display name; in a run, the names of the run and the checkpoint."""
    if checkpoint == tiny_model_path():
        return "tiny"
    if checkpoint.parent.name == "checkpoints":
        return f"{checkpoint.parent.parent.name}-{checkpoint.name}"
    return checkpoint.name
