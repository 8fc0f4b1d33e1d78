"""Settings for evaluating a checkpoint: by default those that it was trained with.

Prompt template, image size and length limits are thus the same in training and evaluation, without repeating them on
the command line. A checkpoint of this package has them in a file of its own, `medr1_ray.json`; the other settings are
those of its run, as long as it lies there. A checkpoint that no run of this package wrote gets the defaults of
`medr1_ray.config`, and the GPUs of this machine (`evaluation/devices.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import Config, require_lasting, tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.data.demonstrations import require_room_for_an_answer
from medr1_ray.data.readers.manifest import MANIFEST_FILE
from medr1_ray.evaluation.devices import place_engines, visible_gpus
from medr1_ray.evaluation.folder import require_own
from medr1_ray.model.folder.check import check_model_files

PARTS = ("train", "validation", "test")
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
ASKED_WITH_FILE = "medr1_ray.json"
"""In a checkpoint: the settings by which its questions were asked, as a settings file (JSON is YAML)."""
_ASKED_WITH: dict[str, bool | set[str]] = {
    "mode": True,
    "prompt": True,
    "data": {"image_size", "image_fit"},
    "rollout": {"max_prompt_tokens", "max_tokens"},
}

# Settings that the schema requires and an evaluation does not use.
_REQUIRED = ("train.steps=1", "train.minibatches=1", "train.updates_per_rollout=1")
# A run has as many as its steps need; a file of many questions can ask for more.
_ONE_ENGINE = ("rollout.actors=1", "rollout.min_actors=null", "rollout.max_actors=null")
# A run's way of moving weights need not be possible on the machine that evaluates it; checkpoints have adapters merged.
_NOT_OF_THE_RUN = ("cluster.weight_transport=auto", "cluster.colocated=false", "model.lora=null")


def write_asked_with(config: Config, checkpoint: Path) -> str:
    """Write how a run asked its questions into a checkpoint of it; returns the name of the file."""
    settings = config.model_dump(mode="json", include=_ASKED_WITH)
    if config.model.lora is not None:
        # As the merged weights are saved: rounded to bfloat16 they would be another model.
        settings["model"] = {"dtype": "float32"}
    (checkpoint / ASKED_WITH_FILE).write_text(json.dumps(settings, indent=1) + "\n")
    return ASKED_WITH_FILE


def describe_asking(config: Config) -> str:
    """Return in one line how questions are asked, and where that comes from."""
    folder = config.model.folder
    if (folder / ASKED_WITH_FILE).exists():
        source = f"as in training ({ASKED_WITH_FILE} of the checkpoint)"
    elif _of_its_run(folder):
        source = "as in training (config.yaml of its run)"
    else:
        source = f"by default (the checkpoint has no {ASKED_WITH_FILE})"
    data, rollout = config.data, config.rollout
    return (
        f"asking {source}, unless set otherwise: mode={config.mode}, data.image_size={data.image_size}, "
        f"data.image_fit={data.image_fit}, rollout.max_prompt_tokens={rollout.max_prompt_tokens}, "
        f"rollout.max_tokens={rollout.max_tokens}"
    )


def evaluation_config(
    checkpoint: Path,
    *,
    data: Path,
    split: str,
    mode: str | None,
    out: Path | None,
    files: Sequence[Path],
    overrides: Sequence[str],
    count_gpus: Callable[[], int] = visible_gpus,
) -> Config:
    """Return the settings for evaluating a checkpoint on the data in `data`.

    Overrides take precedence over the other arguments, and these over files. `count_gpus` is asked where nothing says
    whether the engines run on GPUs.

    Raises:
        ValueError: a setting is not valid, the format of the data is unknown, the result would go with a Ray job, or
            the model is not there (`evaluate` checks the rest of it, after the data).
    """
    given = [f"data.root={json.dumps(str(data.parent if data.is_file() else data))}", "run.dir=runs/evaluations"]
    held_out_part = [f"data.eval_part={json.dumps(split)}"] if split in ("validation", "test") else []
    if not files:
        given += _ALL_QUESTIONS
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
        given += [*_NO_TABLE, "data.format=prepared"]
        given += [f"data.split={json.dumps(name)}", f"data.eval_part={json.dumps(held_out)}"]
    elif (data / "QA_information").is_dir():
        given += [*_NO_TABLE, "data.format=omnimedvqa"]
    elif data.is_file():
        # Columns and the images' folder stay those of the training, if it read a table.
        given += ["data.format=table", f"data.table.file={json.dumps(data.name)}", *held_out_part]
    elif not data.exists():
        raise ValueError(f"--data {data} does not exist; give the folder of the questions, or a table's file")
    elif files:
        given += held_out_part
    else:
        raise ValueError(
            f"--data {data} has neither a manifest nor QA_information, so its format is unknown; give a folder written "
            "by data.prepare, one in OmniMedVQA's layout, or a table's file, or the data settings with --config"
        )
    config = _load(checkpoint, mode, files, given, overrides)
    _require_split(config, split)
    named = f"{data.name}-{split}-{config.mode}".replace("/", "-")
    folder = out or config.run.dir / model_name(checkpoint) / named
    require_lasting("--out", folder)
    require_writable(f"--out {folder}", folder)
    require_own(folder)
    check_model_files(config)
    require_room_for_an_answer(config)
    return without_learner(place_engines(config, count_gpus), folder)


def answering_config(
    checkpoint: Path,
    *,
    mode: str | None,
    files: Sequence[Path],
    overrides: Sequence[str],
    count_gpus: Callable[[], int] = visible_gpus,
) -> Config:
    """Return the settings for answering questions that belong to no dataset, by one engine unless settings say more.

    Raises:
        ValueError: a setting is not valid, or the model is not there (`encode` checks the rest of it).
    """
    given = [*_NO_TABLE, "data.format=omnimedvqa", "data.root=unused", "run.dir=runs/answers"]
    if not files:
        given += _ONE_ENGINE
    config = _load(checkpoint, mode, files, given, overrides)
    check_model_files(config)
    require_room_for_an_answer(config)
    return without_learner(place_engines(config, count_gpus), config.run.dir)


def part_of(config: Config, split: str) -> str:
    """Return the part of the data that `split` names: `train`, or a held-out part.

    Raises:
        ValueError: there is no such part.
    """
    if config.data.format == "prepared":
        part, allowed = split.partition("/")[2] or "test", list(PARTS)
    else:
        part = split
        allowed = list(PARTS) if config.data.format == "table" else ["train", "test"]
    if part not in allowed:
        raise ValueError(f"--split {split!r}: the data has no part {part!r}; it has {', '.join(allowed)}")
    return part


def _require_split(config: Config, split: str) -> None:
    """Raise ValueError where the data have no such split, or no such part of it."""
    part_of(config, split)
    root, name = config.data.root, config.data.split
    if config.data.format == "prepared":
        names = sorted(path.stem for path in (root / "splits").glob("*.json"))
        if name not in names:
            raise ValueError(f"--split {split}: {root} has no split {name!r}; it has {', '.join(names) or 'none'}")


def without_learner(config: Config, folder: Path) -> Config:
    """Return the settings for engines without a learner, writing to `folder`; the default parser grades the answers."""
    learner = config.learner.model_copy(update={"world_size": 1, "gpus_per_rank": 0.0})
    reward = config.reward.model_copy(update={"functions": {"accuracy": 1.0}})
    run = config.run.model_copy(update={"dir": folder.absolute()})
    # The driver puts the weights into the object store, whatever way a learner would have sent them.
    cluster = config.cluster.model_copy(update={"weight_transport": "object_store", "colocated": False})
    return config.model_copy(update={"learner": learner, "reward": reward, "run": run, "cluster": cluster})


def _load(
    checkpoint: Path,
    mode: str | None,
    files: Sequence[Path],
    given: Sequence[str],
    overrides: Sequence[str],
) -> Config:
    model = [f"model.path={json.dumps(str(checkpoint))}", *([f"mode={mode}"] if mode else [])]
    own = [path for path in (checkpoint / ASKED_WITH_FILE,) if path.exists()]
    # What the checkpoint says of itself wins over a folder that it may have been copied into, the user's files over it.
    layers = [*own, *files] if files else [*_of_its_run(checkpoint), *own]
    return load_config(layers, [*model, *given, *_REQUIRED, *_NOT_OF_THE_RUN, *overrides])


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
