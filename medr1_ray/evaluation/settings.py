"""The settings that a checkpoint is evaluated with: those that it was trained with, unless something else is said.

One prompt template, image size and length limit serve training and evaluation, so that nothing has to be repeated on
the command line; a checkpoint from elsewhere gets the defaults of `config.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.data.readers.manifest import MANIFEST_FILE

# What a model was trained on does not narrow what it is evaluated on.
_ALL_QUESTIONS = (
    "data.modalities=[]",
    "data.question_types=[]",
    "data.pass_rates=null",
    "data.min_pass_rate=0",
    "data.max_pass_rate=1",
)
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
    """Settings for a checkpoint on the data in `data`; overrides win over everything, then the other arguments.

    Raises:
        ValueError: a setting is not valid, or the data's format cannot be told.
    """
    given = [f"data.root={json.dumps(str(data))}", "run.dir=runs/evaluations"]
    if not files:
        files, given = _of_its_run(checkpoint), [*given, *_ALL_QUESTIONS]
    if (data / MANIFEST_FILE).exists():
        name, _, part = split.partition("/")
        held_out = "test" if part == "train" else part or "test"
        given += ["data.format=prepared", f"data.split={json.dumps(name)}", f"data.eval_part={json.dumps(held_out)}"]
    elif (data / "QA_information").is_dir():
        given += ["data.format=omnimedvqa"]
    elif not files:
        raise ValueError(
            f"--data {data}: neither a manifest nor QA_information there, so that its format cannot be told; give a "
            "folder that data.prepare wrote or one in OmniMedVQA's layout, or the settings with --config"
        )
    config = _load(checkpoint, mode, files, given, overrides)
    part_of(config, split)
    named = f"{data.name}-{split}-{config.mode}".replace("/", "-")
    return without_learner(config, out or config.run.dir / model_name(checkpoint) / named)


def answering_config(
    checkpoint: Path, *, mode: str | None, files: Sequence[Path], overrides: Sequence[str]
) -> Config:
    """Settings for answering questions that are of no dataset.

    Raises:
        ValueError: a setting is not valid.
    """
    given = ["data.format=omnimedvqa", "data.root=unused", "run.dir=runs/answers"]
    config = _load(checkpoint, mode, files or _of_its_run(checkpoint), given, overrides)
    return without_learner(config, config.run.dir)


def part_of(config: Config, split: str) -> str:
    """The part of the data that `split` names: `train`, or one that is held out.

    Raises:
        ValueError: there is no such part.
    """
    if config.data.format == "prepared":
        part, allowed = split.partition("/")[2] or "test", ["train", "validation", "test"]
    else:
        part, allowed = split, ["train", "test"]
    if part not in allowed:
        raise ValueError(f"--split {split!r}: the data has no part {part!r}; it has {', '.join(allowed)}")
    return part


def without_learner(config: Config, folder: Path) -> Config:
    """The settings of a run for engines alone, which write to `folder`; answers are graded by the default parser."""
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
    """A checkpoint's name for people: of a run, the run's and the checkpoint's."""
    if checkpoint == tiny_model_path():
        return "tiny"
    if checkpoint.parent.name == "checkpoints":
        return f"{checkpoint.parent.parent.name}-{checkpoint.name}"
    return checkpoint.name
