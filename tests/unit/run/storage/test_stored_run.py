"""What a storage holds of a run, and in which order it comes there: killed at any point, a whole run is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medr1_ray.records.checkpoints import Retention, latest_checkpoint, whole_checkpoint
from medr1_ray.run.storage.fetch import bring_newest
from medr1_ray.run.storage.objects import Storage
from medr1_ray.run.storage.stored_run import (
    download_files,
    require_no_run,
    retention_of,
    stored_checkpoints,
    upload_checkpoint,
    upload_files,
)
from tests.faults.storage import FaultyFiles, Killed, a_config, files, save, storage

__all__ = ["files", "storage"]


def upload(storage: Storage, checkpoint: Path, retention: Retention | None = None) -> None:
    upload_files(storage, checkpoint.parents[1])
    upload_checkpoint(storage, checkpoint, retention or retention_of(storage, 2, None, {}))


def unexpected(line: str) -> None:
    raise AssertionError(line)


def test_what_a_resumed_run_reads_is_there_and_nothing_else(
    tmp_path: Path, storage: Storage, files: type[FaultyFiles]
) -> None:
    config = a_config(tmp_path / "run")
    checkpoint = save(config, 3)
    for name in ("spans.jsonl", "metrics.discarded-1.jsonl", "wandb_id", "timeline.json", ".lock"):
        (config.run.dir / name).write_text("")
    (config.run.dir / "set_aside" / "q 1").mkdir(parents=True)
    (config.run.dir / "set_aside" / "q 1" / "question.json").write_text("{}")
    upload(storage, checkpoint)
    assert sorted(name for name in files.content() if name.startswith("files")) == [
        "files/1/config.yaml",
        "files/1/evaluations/before.json",
        "files/1/manifest.json",
        "files/1/metrics.discarded-1.jsonl",
        "files/1/metrics.jsonl",
        "files/1/set_aside/q 1/question.json",
        "files/1/spans.jsonl",
        "files/1/wandb_id",
    ]
    assert sorted(name for name in files.content() if name.startswith("checkpoints")) == [
        "checkpoints/checkpoint-3/learner_state/0.safetensors",
        "checkpoints/checkpoint-3/manifest.json",
        "checkpoints/checkpoint-3/model.safetensors",
        "checkpoints/checkpoint-3/state.json",
        "checkpoints/latest",
    ]
    upload_files(storage, config.run.dir)
    assert {name.split("/")[1] for name in files.content() if name.startswith("files")} == {"2"}


def test_killed_at_each_point_of_an_upload_a_resume_finds_a_whole_run(
    tmp_path: Path, storage: Storage, files: type[FaultyFiles]
) -> None:
    """From checkpoints 2 and 4 to 4 and 6. Half of what was being written is there, as in a folder that is shared."""
    config = a_config(tmp_path / "run")
    for step in (2, 4):
        upload(storage, save(config, step))
    before, checkpoint = files.content(), save(config, 6)
    found = []
    for at in range(100):
        files.put_back(before)
        files.set("kill", at)
        try:
            upload(storage, checkpoint)
        except Killed:
            ended = False
        else:
            ended = True
        files.set()
        fresh = a_config(tmp_path / "fresh")
        bring_newest(fresh, lambda line: None)
        brought = whole_checkpoint(fresh.run.dir / "checkpoints", unexpected)
        found.append(brought.name)
        step = int(brought.name.removeprefix("checkpoint-"))
        lines = (fresh.run.dir / "metrics.jsonl").read_text().splitlines()
        assert len(lines) >= step, "of every step that the checkpoint knows"
        assert (fresh.run.dir / "evaluations" / "before.json").exists()
        # The same upload again, as of the next start, mends what was left.
        upload(storage, checkpoint)
        assert stored_checkpoints(storage) == ["checkpoint-6", "checkpoint-4"]
        assert not any("checkpoint-2" in name for name in files.content())
        shutil.rmtree(fresh.run.dir)
        if ended:
            break
    assert ended
    # It counts with its manifest: of six changes after that none takes it back. `latest` may be cut off.
    assert found == sorted(found)
    assert {"checkpoint-4", "checkpoint-6"} == set(found)


def test_the_kept_are_those_of_a_disk(tmp_path: Path, storage: Storage) -> None:
    config = a_config(tmp_path / "run")
    retention = retention_of(storage, 2, None, {2: 0.9, 3: 0.5, 5: 0.6})
    for step in (1, 2, 3, 4, 5):
        upload(storage, save(config, step), retention)
    assert stored_checkpoints(storage) == ["checkpoint-5", "checkpoint-4", "checkpoint-2"]


def test_a_run_that_was_rolled_back_goes_on_from_where_it_is(tmp_path: Path, storage: Storage) -> None:
    config = a_config(tmp_path / "run")
    for step in (2, 4, 6):
        upload(storage, save(config, step))
    upload(storage, config.run.dir / "checkpoints" / "checkpoint-4")
    assert stored_checkpoints(storage) == ["checkpoint-4"], "checkpoint-6 is another past, and stays"
    upload(storage, save(config, 5))
    assert stored_checkpoints(storage) == ["checkpoint-5", "checkpoint-4"]
    storage.delete("checkpoints/latest")
    assert stored_checkpoints(storage)[0] == "checkpoint-6"


def test_a_past_that_was_rolled_back_takes_the_place_of_no_good_one(tmp_path: Path, storage: Storage) -> None:
    config = a_config(tmp_path / "run")
    for step in (2, 4, 6):
        upload(storage, save(config, step))
    rolled_back_to = config.run.dir / "checkpoints" / "checkpoint-4"
    retention = retention_of(storage, 2, rolled_back_to, {})
    upload(storage, rolled_back_to, retention)
    upload(storage, save(config, 7), retention)
    # `keep_checkpoints` is 2: these, and not the 6 of another past.
    assert stored_checkpoints(storage) == ["checkpoint-7", "checkpoint-4"]


def test_the_same_checkpoint_is_not_uploaded_again(
    tmp_path: Path, storage: Storage, files: type[FaultyFiles]
) -> None:
    config = a_config(tmp_path / "run")
    checkpoint = save(config, 2)
    upload_checkpoint(storage, checkpoint, retention_of(storage, 2, None, {}))
    files.set()
    upload_checkpoint(storage, checkpoint, retention_of(storage, 2, None, {}))
    assert files.changes == 1, "`latest`"
    # Done again from an older one, its bytes are others.
    (config.run.dir / "checkpoints" / "latest").unlink()
    shutil.rmtree(checkpoint)
    checkpoint = save(config, 2, skipped=1)
    upload_checkpoint(storage, checkpoint, retention_of(storage, 2, None, {}))
    assert files.content()["checkpoints/checkpoint-2/manifest.json"] == (checkpoint / "manifest.json").read_bytes()
    assert latest_checkpoint(config.run.dir / "checkpoints") == checkpoint


def test_a_run_is_there_once_it_has_a_checkpoint(tmp_path: Path, storage: Storage) -> None:
    checkpoint = save(a_config(tmp_path / "run"), 2)
    upload_files(storage, tmp_path / "run")
    require_no_run(storage)
    upload_checkpoint(storage, checkpoint, retention_of(storage, 2, None, {}))
    with pytest.raises(ValueError, match=r"holds a run already \(checkpoint-2\); continue it with --resume, choose"):
        require_no_run(storage)


def test_of_damaged_files_the_set_before_is_taken(tmp_path: Path, storage: Storage, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    save(config, 2)
    upload_files(storage, config.run.dir)
    older = {name.replace("files/1", "files/9"): each for name, each in files.content().items()}
    upload_files(storage, config.run.dir)
    files.put_back({**files.content(), **older, "files/9/metrics.jsonl": b"{}\n"})
    said: list[str] = []
    brought = download_files(storage, tmp_path / "there", said.append)
    assert [path.name for path in brought] == ["config.yaml", "before.json", "metrics.jsonl"]
    (line,) = said
    assert "files/9 is damaged and is not used: metrics.jsonl has 3 bytes and was written with 24" in line


def test_names_that_are_not_of_a_run_are_left_behind(tmp_path: Path, storage: Storage) -> None:
    """Who may write to the storage writes no file of his own choice here."""
    config = a_config(tmp_path / "run")
    save(config, 2)
    (tmp_path / "run" / "metrics.jsonl").rename(tmp_path / "run" / "metrics.discarded-1.jsonl")
    upload_files(storage, config.run.dir)
    manifest = (storage.read("files/1/manifest.json") or b"").decode()
    storage.write("files/1/checkpoints/x", storage.read("files/1/config.yaml") or b"")
    storage.write("files/1/manifest.json", manifest.replace("config.yaml", "checkpoints/x").encode())
    brought = download_files(storage, tmp_path / "there", unexpected)
    assert [path.name for path in brought] == ["before.json", "metrics.discarded-1.jsonl"]
