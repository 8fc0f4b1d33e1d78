"""Settings for evaluating a checkpoint: by default those that it was trained with.

Prompt template, image size and length limits are thus the same in training and evaluation, without repeating them on
the command line. A checkpoint that no run of this package wrote gets the defaults of `medr1_ray.config`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.data.readers.manifest import MANIFEST_FILE

PARTS = ("train", "validation", "test")
# The filters of the training data do not apply to the evaluation.
_ALL_QUESTIONS = (
    "data.modalities=[]",
    "data.question_types=[]",
    "data.pass_rates=null",
    "data.min_pass_rate=0",
    "data.max_pass_rate=1",
)
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
    given = [f"data.root={json.dumps(str(data))}", "run.dir=runs/evaluations"]
    if not files:
        files, given = _of_its_run(checkpoint), [*given, *_ALL_QUESTIONS]
    if (data / MANIFEST_FILE).exists():
        name, _, part = split.partition("/")
        if part not in ("", *PARTS):
            near = get_close_matches(part, PARTS, n=1)
            raise ValueError(
                f"--split {split}: {part!r} is not a part of a split; "
                + (f"did you mean {name}/{near[0]}?" if near else f"give {name}/PART with one of {', '.join(PARTS)}")
            )
        # The settings need a held-out part in any case; `evaluate._read` replaces its questions by those of training.
        held_out = "test" if part == "train" else part or "test"
        given += ["data.format=prepared", f"data.split={json.dumps(name)}", f"data.eval_part={json.dumps(held_out)}"]
    elif (data / "QA_information").is_dir():
        given += ["data.format=omnimedvqa"]
    elif not data.is_dir():
        raise ValueError(f"--data {data} is not a folder; give the folder of the questions")
    elif not files:
        raise ValueError(
            f"--data {data} has neither a manifest nor QA_information, so its format is unknown; give a folder written "
            "by data.prepare or one in OmniMedVQA's layout, or the data settings with --config"
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
    given = ["data.format=omnimedvqa", "data.root=unused", "run.dir=runs/answers"]
    config = _load(checkpoint, mode, files or _of_its_run(checkpoint), given, overrides)
    return without_learner(config, config.run.dir)


def part_of(config: Config, split: str) -> str:
    """Return the part of the data that `split` names: `train`, or a held-out part.

    Raises:
        ValueError: there is no such part.
    """
    if config.data.format == "prepared":
        part, allowed = split.partition("/")[2] or "test", list(PARTS)
    else:
        part, allowed = split, ["train", "test"]
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
