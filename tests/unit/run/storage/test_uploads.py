"""Uploads behind a training: what is waited for, what is told, and what ends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Timer

import pytest

from medr1_ray.base.manifest import StoredFile
from medr1_ray.config import Config
from medr1_ray.run.storage.objects import Storage, StorageError
from medr1_ray.run.storage.stored_run import stored_checkpoints
from medr1_ray.run.storage.uploads import stored_checkpoints_of, upload_again
from tests.faults.storage import URL, FaultyFiles, a_config, a_state, files, save

__all__ = ["files"]


def names(config: Config) -> list[str]:
    storage = Storage.of(config)
    assert storage is not None
    return stored_checkpoints(storage)


def unexpected(line: str) -> None:
    raise AssertionError(line)


def test_a_run_without_storage_has_plain_checkpoints(tmp_path: Path) -> None:
    config = a_config(tmp_path / "run", None)
    with stored_checkpoints_of(config, None, {}, unexpected) as checkpoints:
        assert save(config, 2, checkpoints).is_dir()
    upload_again(config, unexpected)


def test_each_checkpoint_arrives_and_at_the_end_what_came_after(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    with stored_checkpoints_of(config, None, {}, lambda line: None) as checkpoints:
        for step in (2, 4, 6):
            save(config, step, checkpoints)
        (config.run.dir / "summary.json").write_text("{}")
    assert names(config) == ["checkpoint-6", "checkpoint-4"]
    assert [name for name in files.content() if name.endswith("summary.json")]
    assert "owner.json" not in files.content()


def test_training_goes_on_while_an_upload_does_not(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    said: list[str] = []
    with stored_checkpoints_of(config, None, {}, said.append) as checkpoints:
        files.set("hang", at=0)
        save(config, 2, checkpoints)
        assert said == []
        assert not any(name.startswith("files") for name in files.content())
        files.go_on.set()
    assert names(config) == ["checkpoint-2"]


def test_the_next_save_waits_for_an_upload_until_its_deadline(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run", timeout=1.0)
    said: list[str] = []
    with stored_checkpoints_of(config, None, {}, said.append) as checkpoints:
        files.set("hang")
        save(config, 2, checkpoints)
        save(config, 4, checkpoints)
        first = f"NOT IN STORAGE: checkpoint-2 (run.storage='{URL}': writing files/1/config.yaml timed out"
        assert said[0].startswith(first)
        assert said[0].endswith("What is there stays; the run goes on and uploads its next checkpoint")
        files.set()
        save(config, 6, checkpoints)
    assert any(line.startswith("in storage again: ") for line in said)
    assert names(config)[0] == "checkpoint-6"


def test_a_save_deletes_nothing_that_is_being_uploaded(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run", run={"keep_checkpoints": 1})
    stored: list[list[str]] = []

    def nothing_written() -> Iterator[StoredFile]:
        stored.append(names(config))
        yield from ()

    with stored_checkpoints_of(config, None, {}, unexpected_but_waiting) as checkpoints:
        files.set("hang", at=0)
        save(config, 2, checkpoints)
        assert not checkpoints.may_publish()
        assert not checkpoints.may_publish(0.01)
        Timer(0.3, files.go_on.set).start()
        checkpoints.publish(checkpoints.begin(a_state(4)), nothing_written())
        assert checkpoints.may_publish(60)
    assert stored == [["checkpoint-2"]]
    assert names(config) == ["checkpoint-4"]


def unexpected_but_waiting(line: str) -> None:
    assert line.startswith("waiting until "), line


def test_what_fails_last_is_tried_again_at_the_end(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    told = Event()
    with stored_checkpoints_of(config, None, {}, lambda line: told.set()) as checkpoints:
        files.set("refuse")
        save(config, 2, checkpoints)
        assert told.wait(60)
        files.set()
    assert names(config) == ["checkpoint-2"]


def test_a_run_that_is_done_fails_where_its_end_did_not_arrive_and_the_same_command_brings_it(
    tmp_path: Path, files: type[FaultyFiles]
) -> None:
    config = a_config(tmp_path / "run")

    def run() -> None:
        with stored_checkpoints_of(config, None, {}, lambda line: None) as checkpoints:
            files.set("refuse")
            save(config, 2, checkpoints)

    with pytest.raises(StorageError, match=r"NOT IN STORAGE: checkpoint-2, .*Access Denied.*--resume uploads it$"):
        run()
    files.set()
    assert names(config) == []
    upload_again(config, lambda line: None)
    assert names(config) == ["checkpoint-2"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stop_waits_for_the_upload_and_keeps_its_own_error(
    tmp_path: Path, files: type[FaultyFiles], error: type[BaseException]
) -> None:
    config = a_config(tmp_path / "run")
    said: list[str] = []

    def run(resumed_from: Path | None, fault: str) -> None:
        with stored_checkpoints_of(config, resumed_from, {}, said.append) as checkpoints:
            files.set(fault)
            save(config, 4 if resumed_from else 2, checkpoints)
            raise error

    with pytest.raises(error):
        run(None, "")
    assert names(config) == ["checkpoint-2"]
    with pytest.raises(error):
        run(config.run.dir / "checkpoints" / "checkpoint-2", "refuse")
    assert said[-1].startswith("NOT IN STORAGE: checkpoint-4, or what came after it")
    assert sum(line.startswith("NOT IN STORAGE: checkpoint-4 (") for line in said) == 1, "the last try is told once"


def test_what_a_resumed_run_has_is_uploaded_where_it_is_missing(tmp_path: Path, files: type[FaultyFiles]) -> None:
    """The storage is new, or the last upload failed."""
    config = a_config(tmp_path / "run")
    checkpoint = save(config, 2)
    with stored_checkpoints_of(config, checkpoint, {}, lambda line: None):
        pass
    assert names(config) == ["checkpoint-2"]


def test_a_new_run_is_refused_where_there_is_one(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    with stored_checkpoints_of(config, None, {}, lambda line: None) as checkpoints:
        save(config, 2, checkpoints)
    with pytest.raises(ValueError, match="holds a run already"), stored_checkpoints_of(config, None, {}, unexpected):
        pass


def test_a_run_whose_storage_was_taken_over_uploads_nothing_more(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    storage = Storage.of(config)
    assert storage is not None
    other = b'{"run": "other", "host": "h", "pid": 1, "time": 0}'

    def run() -> None:
        with stored_checkpoints_of(config, None, {}, lambda line: None) as checkpoints:
            storage.write("owner.json", other)
            save(config, 2, checkpoints)

    with pytest.raises(StorageError, match=r"NOT IN STORAGE: checkpoint-2, .*in use by process 1 on h now"):
        run()
    assert names(config) == []
    assert files.content()["owner.json"] == other




def test_of_a_run_that_is_done_the_best_stays_in_the_storage(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    with stored_checkpoints_of(config, None, {2: 0.9}, lambda line: None) as checkpoints:
        for step in (2, 4, 6):
            save(config, step, checkpoints)
    with (config.run.dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "eval/accuracy": 0.9}\n')
    upload_again(config, lambda line: None)
    assert names(config) == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
