"""Resolving checkpoint, data and settings of an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.config.loading import load_config, write_config
from medr1_ray.data.readers.manifest import MANIFEST_FILE
from medr1_ray.evaluation.settings import (
    ASKED_WITH_FILE,
    answering_config,
    describe_asking,
    evaluation_config,
    part_of,
    write_asked_with,
)
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
    shutil.copytree(tiny_model_path(), checkpoint)
    (run / "checkpoints" / "latest").write_text("checkpoint-5\n")
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
    answering = answering_config(checkpoint, mode=None, files=[], overrides=["rollout.max_tokens=17"])
    assert (answering.mode, answering.rollout.max_tokens) == ("think", 17)


def test_questions_are_answered_by_one_engine_unless_settings_say_more(run: Path, tmp_path: Path) -> None:
    checkpoint = resolve_checkpoint(str(run))
    elastic = ["rollout.actors=3", "rollout.min_actors=2", "rollout.max_actors=4"]
    write_config(load_config([run / "config.yaml"], elastic), run / "config.yaml")

    def engines(files: list[Path], *overrides: str) -> tuple[int, tuple[int, int]]:
        rollout = answering_config(checkpoint, mode=None, files=files, overrides=overrides).rollout
        return rollout.actors, rollout.actor_range

    assert engines([]) == (1, (1, 1))
    assert engines([], "rollout.actors=5") == (5, (5, 5))
    assert engines([run / "config.yaml"]) == (3, (2, 4)), "files of the user count as given"


def test_a_checkpoint_that_was_copied_out_of_its_run_knows_how_it_was_trained(run: Path, tmp_path: Path) -> None:
    own = ["data.image_fit=pad", "rollout.max_prompt_tokens=300", "prompt.system=Be brief."]
    trained = load_config([run / "config.yaml"], own)
    # Beside the configuration of another run.
    copied = tmp_path / "other_run" / "checkpoints" / "best"
    shutil.copytree(tiny_model_path(), copied)
    write_config(load_config([run / "config.yaml"], ["mode=think_after"]), tmp_path / "other_run" / "config.yaml")
    write_asked_with(trained, copied)
    assert json.loads((copied / ASKED_WITH_FILE).read_text()) == {
        "mode": "think",
        "prompt": trained.prompt.model_dump(mode="json"),
        "data": {"image_size": 140, "image_fit": "pad"},
        "rollout": {"max_prompt_tokens": 300, "max_tokens": 99},
    }

    def asked(files: list[Path], *overrides: str) -> tuple[object, ...]:
        config = answering_config(copied, mode=None, files=files, overrides=overrides)
        return config.mode, config.data.image_size, config.data.image_fit, config.rollout.max_tokens

    assert asked([]) == ("think", 140, "pad", 99)
    assert answering_config(copied, mode=None, files=[], overrides=[]).prompt == trained.prompt
    assert asked([], "mode=no_think", "rollout.max_tokens=7") == ("no_think", 140, "pad", 7)
    (tmp_path / "mine.yaml").write_text("data: {image_size: 168}")
    assert asked([tmp_path / "mine.yaml"]) == ("think", 168, "pad", 99)
    said = describe_asking(answering_config(copied, mode=None, files=[], overrides=[]))
    assert said.startswith("asking as in training (medr1_ray.json of the checkpoint)")
    assert "mode=think, data.image_size=140, data.image_fit=pad, rollout.max_prompt_tokens=300" in said


def test_merged_adapters_are_asked_in_the_type_that_they_are_saved_in(run: Path, tmp_path: Path) -> None:
    trained = load_config([run / "config.yaml"], ["model.lora.rank=4", "model.dtype=bfloat16"])
    write_config(trained, run / "config.yaml")
    checkpoint = resolve_checkpoint(str(run))
    write_asked_with(trained, checkpoint)
    asked = answering_config(checkpoint, mode=None, files=[], overrides=[])
    assert (asked.model.lora, asked.model.dtype) == (None, "float32")
    rounded = answering_config(checkpoint, mode=None, files=[], overrides=["model.dtype=bfloat16"])
    assert rounded.model.dtype == "bfloat16", "a setting wins"


def test_where_the_settings_come_from_is_said(run: Path) -> None:
    for checkpoint, source in (
        (resolve_checkpoint(str(run)), "asking as in training (config.yaml of its run)"),
        (tiny_model_path(), "asking by default (the checkpoint has no medr1_ray.json)"),
    ):
        assert describe_asking(answering_config(checkpoint, mode=None, files=[], overrides=[])).startswith(source)


def test_a_run_on_gpus_is_evaluated_on_a_cpu_with_weights_from_the_driver(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "QA_information").mkdir(parents=True)
    checkpoint = resolve_checkpoint(str(run))
    on_gpus = load_config([run / "config.yaml"], ["rollout.gpus_per_actor=1", "cluster.weight_transport=auto"])
    assert on_gpus.cluster.weight_transport == "nccl"
    write_config(on_gpus, run / "config.yaml")
    config = _config(checkpoint=checkpoint, data=tmp_path / "data")
    assert (config.rollout.gpus_per_actor, config.cluster.weight_transport) == (1, "object_store")
    config = _config(checkpoint=checkpoint, data=tmp_path / "data", overrides=["rollout.gpus_per_actor=0"])
    assert (config.rollout.gpus_per_actor, config.cluster.weight_transport) == (0, "object_store")
    shared = ["learner.gpus_per_rank=0.5", "rollout.gpus_per_actor=0.5", "cluster.colocated=true", "rollout.actors=2"]
    write_config(load_config([run / "config.yaml"], ["cluster.weight_transport=auto", *shared]), run / "config.yaml")
    config = _config(checkpoint=checkpoint, data=tmp_path / "data")
    assert (config.cluster.colocated, config.cluster.weight_transport) == (False, "object_store")


def test_prepared_data_names_a_split_and_a_part(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).touch()
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "grouped.json").touch()
    for split, part in (("grouped", "test"), ("grouped/validation", "validation"), ("grouped/train", "train")):
        config = _config(data=tmp_path, split=split)
        assert (config.data.format, config.data.split, part_of(config, split)) == ("prepared", "grouped", part)
    assert config.data.eval_part == "test"
    with pytest.raises(ValueError, match=r"'tets' is not a part of a split; did you mean grouped/test\?"):
        _config(data=tmp_path, split="grouped/tets")
    with pytest.raises(ValueError, match=r"--split own/test: .* has no split 'own'; it has grouped$"):
        _config(data=tmp_path, split="own/test")


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


def test_a_base_model_is_asked_on_gpus_with_its_own_wording(tmp_path: Path) -> None:
    (tmp_path / "QA_information").mkdir()
    wording = tmp_path / "mine.yaml"
    wording.write_text('prompt: {system: Be brief., think: "{question} Think, then <answer>...</answer>."}\n')
    given: dict[str, Any] = {"data": tmp_path, "mode": "think", "files": [wording], "count_gpus": lambda: 2}
    config = _config(**given)
    assert (config.prompt.system, config.prompt.templates["think"][:17]) == ("Be brief.", "{question} Think,")
    assert (config.rollout.actors, config.rollout.gpus_per_actor, config.model.dtype) == (2, 1, "bfloat16")
    on_cpu = _config(**given, overrides=["rollout.gpus_per_actor=0", 'prompt.think="{question}"'])
    assert (on_cpu.rollout.gpus_per_actor, on_cpu.model.dtype, on_cpu.prompt.think) == (0, "float32", "{question}")
    answering = answering_config(
        tiny_model_path(), mode=None, files=[], overrides=["prompt.system=Short."], count_gpus=lambda: 1
    )
    assert (answering.prompt.system, answering.rollout.gpus_per_actor) == ("Short.", 1)


def test_a_runs_checkpoint_is_asked_where_the_run_was_and_in_its_words(run: Path, tmp_path: Path) -> None:
    def count_gpus() -> int:
        raise AssertionError("a run's settings say where its engines run")

    (tmp_path / "data" / "QA_information").mkdir(parents=True)
    changed = load_config([run / "config.yaml"], ["prompt.system=Be brief."])
    write_config(changed, run / "config.yaml")
    config = _config(checkpoint=resolve_checkpoint(str(run)), data=tmp_path / "data", count_gpus=count_gpus)
    assert (config.prompt.system, config.rollout.gpus_per_actor, config.model.dtype) == ("Be brief.", 0, "float32")
