"""Resolving checkpoint, data and settings of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.config.loading import load_config, write_config
from medr1_ray.data.readers.manifest import MANIFEST_FILE
from medr1_ray.evaluation.settings import answering_config, evaluation_config, part_of
from medr1_ray.model.checkpoint_files import resolve_checkpoint
from tests.repository import REPOSITORY


def _config(**changes: Any) -> Config:
    arguments: dict[str, Any] = {
        "split": "test",
        "mode": None,
        "out": None,
        "files": [],
        "overrides": [],
    }
    return evaluation_config(changes.pop("checkpoint", tiny_model_path()), **(arguments | changes))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run in Think mode at 140 pixels, with one checkpoint."""
    run = tmp_path / "my_run"
    checkpoint = run / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("checkpoint-5\n")
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_bytes((tiny_model_path() / name).read_bytes())
    given = ["mode=think", f"run.dir={run}", "data.format=phantoms", "data.root=x", "data.image_size=140"]
    given += ["data.modalities=[CT]"]
    given += ["train.steps=8", "learner.world_size=2", "learner.gpus_per_rank=1", "rollout.max_tokens=99"]
    write_config(load_config([], given), run / "config.yaml")
    return run


def test_a_run_is_evaluated_with_its_own_settings(run: Path, tmp_path: Path) -> None:
    checkpoint = resolve_checkpoint(str(run))
    assert checkpoint == run / "checkpoints" / "checkpoint-5"
    (tmp_path / "data" / "QA_information").mkdir(parents=True)
    config = _config(checkpoint=checkpoint, data=tmp_path / "data")
    assert (config.mode, config.data.image_size, config.rollout.max_tokens) == ("think", 140, 99)
    assert config.data.modalities == (), "filters of the training data do not apply"
    assert (config.data.format, config.data.root) == ("omnimedvqa", tmp_path / "data")
    assert (config.learner.world_size, config.learner.gpus_per_rank) == (1, 0)
    assert config.run.dir == Path.cwd() / "runs/evaluations/my_run-checkpoint-5/data-test-think"
    assert _config(checkpoint=checkpoint, data=tmp_path / "data", mode="no_think").mode == "no_think"
    answering = answering_config(checkpoint, mode=None, files=[], overrides=["rollout.max_tokens=7"])
    assert (answering.mode, answering.rollout.max_tokens) == ("think", 7)


def test_prepared_data_names_a_split_and_a_part(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).touch()
    for split, part in (("grouped", "test"), ("grouped/validation", "validation"), ("grouped/train", "train")):
        config = _config(data=tmp_path, split=split)
        assert (config.data.format, config.data.split, part_of(config, split)) == ("prepared", "grouped", part)
    assert config.data.eval_part == "test"
    with pytest.raises(ValueError, match=r"data\.eval_part='tets'"):
        _config(data=tmp_path, split="grouped/tets")


def test_a_table_is_evaluated_with_the_columns_of_the_training(run: Path, tmp_path: Path) -> None:
    given = ["data.format=table", "data.table={file: a.csv, columns: {image: img}}", "data.image_root=pictures"]
    changed = load_config([run / "config.yaml"], [*given, "data.sampling_weights={PET: 2}"])
    write_config(changed, run / "config.yaml")
    (tmp_path / "b.csv").touch()
    config = _config(checkpoint=run / "checkpoints" / "checkpoint-5", data=tmp_path / "b.csv")
    assert config.data.table is not None
    assert (config.data.root, config.data.table.file, config.data.eval_part) == (tmp_path, "b.csv", "test")
    assert (config.data.table.columns.image, config.data.image_root) == ("img", Path("pictures"))
    assert config.data.sampling_weights == {}, "weights of the training data do not apply"
    # On other data nothing of the table is left.
    (tmp_path / "data" / "QA_information").mkdir(parents=True)
    other = _config(checkpoint=run / "checkpoints" / "checkpoint-5", data=tmp_path / "data").data
    assert (other.format, other.table, other.image_root) == ("omnimedvqa", None, None)
    assert answering_config(run / "checkpoints" / "checkpoint-5", mode=None, files=[], overrides=[]).data.table is None


def test_a_table_of_a_model_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "b.csv").touch()
    for split in ("train", "validation", "test"):
        config = _config(data=tmp_path / "b.csv", split=split)
        assert (config.data.format, part_of(config, split)) == ("table", split)
    assert _config(data=tmp_path / "b.csv", split="validation").data.eval_part == "validation"
    with pytest.raises(ValueError, match=r"no part 'grouped'; it has train, validation, test"):
        _config(data=tmp_path / "b.csv", split="grouped")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its format is unknown"):
        _config(data=tmp_path)
    (tmp_path / "QA_information").mkdir()
    with pytest.raises(ValueError, match=r"--split 'grouped': the data has no part 'grouped'; it has train, test"):
        _config(data=tmp_path, split="grouped")


@pytest.mark.parametrize(("split", "part"), [("test", "test"), ("validation", "validation"), ("train", "test")])
def test_a_published_dataset_is_evaluated_on_the_part_that_is_named(tmp_path: Path, split: str, part: str) -> None:
    files = [REPOSITORY / "configs" / "datasets" / "medxpertqa_mm.yaml"]
    config = _config(data=tmp_path, split=split, files=files)
    assert (config.data.format, config.data.root, config.data.eval_part) == ("table", tmp_path, part)
