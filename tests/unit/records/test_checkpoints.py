"""Checkpoints are whole or not there, and say where a run stood."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medr1_ray.base.manifest import NotSavedError, StoredFile, store
from medr1_ray.data.stream import StreamState
from medr1_ray.learner.messages import Gap
from medr1_ray.records.checkpoints import (
    Checkpoints,
    RunState,
    latest_checkpoint,
    read_state,
    whole_checkpoint,
)
from medr1_ray.records.summary import Totals
from tests.faults.files import full, small_disk
from tests.faults.storage import publish


def _state(step: int) -> RunState:
    return RunState(
        step=step,
        stream=StreamState(seed=1, digest="d", epoch=2, position=3, dropped={"prompt too long": 1}),
        unused_prompts=("2.1:q",),
        groups_used=4,
        groups_zero_variance=1,
        groups_reissued=2,
        answers_late=1,
        groups_dropped={"stale": 2},
        totals=Totals(32, {"rollout": 1.5}, Gap(2e-6, 3e-4, 1000), {"asked": 3, "lost": 1}),
        config_digest="c",
        steps_skipped=3,
        metric_lines=7,
    )


def _write(folder: Path, content: bytes = b"weights") -> list[StoredFile]:
    (folder / "learner_state").mkdir()
    (folder / "learner_state" / "optimizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return [store(folder, name) for name in ("model.safetensors", "learner_state/optimizer.json")]


def _whole(folder: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    return whole_checkpoint(folder, said.append), said


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_published_checkpoint_is_read_back(tmp_path: Path) -> None:
    published = publish(Checkpoints(tmp_path, keep=2), _state(10), _write)
    assert published == tmp_path / "checkpoint-10"
    assert _whole(tmp_path) == (published, [])
    assert read_state(published) == _state(10)
    assert (published / "model.safetensors").read_bytes() == b"weights"
    assert _names(published) == ["learner_state", "manifest.json", "model.safetensors", "state.json"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 100):
        publish(checkpoints, _state(step), _write)
        assert latest_checkpoint(tmp_path).name == f"checkpoint-{step}"
    assert _names(tmp_path) == ["checkpoint-10", "checkpoint-100", "latest"]


def test_copies_that_somebody_made_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    copies = ["checkpoint-1-merged", "checkpoint-1 (copy)", "checkpoint-best"]
    for name in copies:
        (tmp_path / name).mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (2, 3):
        publish(checkpoints, _state(step), _write)
    assert latest_checkpoint(tmp_path).name == "checkpoint-3"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == sorted([*copies, "checkpoint-3"])


def test_the_best_evaluation_is_kept_besides(tmp_path: Path) -> None:
    accuracies = {1: 0.5, 4: 0.7}
    checkpoints = Checkpoints(tmp_path, keep=1, accuracies=accuracies)
    for step in (1, 2):
        publish(checkpoints, _state(step), _write)
    accuracies[2] = 0.9  # its evaluation was broken off, and made by a resumed run
    for step in (3, 4, 5):
        publish(checkpoints, _state(step), _write)
    assert _names(tmp_path) == ["checkpoint-2", "checkpoint-5", "latest"]
    # Of equals the newer one.
    accuracies[6] = 0.9
    publish(checkpoints, _state(6), _write)
    assert _names(tmp_path) == ["checkpoint-6", "latest"]


def test_copies_and_checkpoints_of_later_steps_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (10, 20):
        publish(checkpoints, _state(step), _write)
        shutil.copytree(tmp_path / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}-best")
    # Somebody goes back: what `latest` names is never the one that is deleted.
    shutil.copytree(tmp_path / "checkpoint-10-best", tmp_path / "checkpoint-10")
    (tmp_path / "latest").write_text("checkpoint-10\n")
    publish(checkpoints, _state(15), _write)
    assert _names(tmp_path) == ["checkpoint-10-best", "checkpoint-15", "checkpoint-20", "checkpoint-20-best", "latest"]
    assert _whole(tmp_path) == (tmp_path / "checkpoint-15", [])


def _fails(error: OSError) -> Callable[[Path], list[StoredFile]]:
    def write(folder: Path) -> list[StoredFile]:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    return write


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_write_that_fails_leaves_the_older_checkpoint_and_none_of_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    publish(checkpoints, _state(1), _write)
    with pytest.raises(NotSavedError, match=r"a rank cannot write .*checkpoint-2.*: .*No space left on device"):
        publish(checkpoints, _state(2), _fails(FULL))
    assert _names(tmp_path) == ["checkpoint-1", "latest"]
    assert _whole(tmp_path) == (tmp_path / "checkpoint-1", [])
    publish(checkpoints, _state(2), _write)
    assert _names(tmp_path) == ["checkpoint-2", "latest"]


def test_a_full_disk_costs_one_checkpoint_and_no_older_one(disk: Path) -> None:
    checkpoints = Checkpoints(disk / "checkpoints", keep=1)
    publish(checkpoints, _state(1), _write)
    with full(disk), pytest.raises(NotSavedError, match=r"a rank cannot write .*: .*No space left on device"):
        publish(checkpoints, _state(2), lambda folder: _write(folder, bytes(2**17)))
    assert _names(disk / "checkpoints") == ["checkpoint-1", "latest"]
    assert _whole(disk / "checkpoints") == (disk / "checkpoints" / "checkpoint-1", [])
    publish(checkpoints, _state(2), _write)
    assert _whole(disk / "checkpoints") == (disk / "checkpoints" / "checkpoint-2", [])


def test_a_disk_that_is_full_when_all_but_the_manifest_is_written_is_such_a_failure(disk: Path) -> None:
    checkpoints = Checkpoints(disk / "checkpoints", keep=1)
    publish(checkpoints, _state(1), _write)
    checkpoint = checkpoints.begin(_state(2))
    files = _write(checkpoint.folder)
    with full(disk), pytest.raises(NotSavedError, match=r"checkpoint of step 2 cannot be written: .*No space left"):
        checkpoints.publish(checkpoint, files)
    checkpoints.give_up(checkpoint)
    assert _names(disk / "checkpoints") == ["checkpoint-1", "latest"]


def test_a_folder_that_cannot_be_made_is_such_a_failure(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(NotSavedError, match=r"checkpoint of step 2 cannot be written: .*Not a directory"):
        Checkpoints(tmp_path / "checkpoints", keep=1).begin(_state(2))


def test_the_state_is_that_of_the_moment_when_the_write_began(tmp_path: Path) -> None:
    """The run goes on, and changes what its state is made of."""
    checkpoints, state = Checkpoints(tmp_path, keep=1), _state(2)
    checkpoint = checkpoints.begin(state)
    files = _write(checkpoint.folder)
    state.totals.seconds["rollout"] = 99.0
    state.stream.dropped["prompt too long"] = 99
    assert read_state(checkpoints.publish(checkpoint, files)) == _state(2)


def test_an_old_one_that_cannot_be_deleted_ends_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    busy = publish(checkpoints, _state(1), _write) / "busy"
    try:
        with small_disk(busy, 2**16):
            publish(checkpoints, _state(2), _write)
    except PermissionError as error:
        pytest.skip(f"no disk may be mounted here: {error}")
    assert _whole(tmp_path) == (tmp_path / "checkpoint-2", [])
    publish(checkpoints, _state(3), _write)
    assert _names(tmp_path) == ["checkpoint-3", "latest"]


def test_a_pointer_that_is_no_text_is_as_none(tmp_path: Path) -> None:
    publish(Checkpoints(tmp_path, keep=1), _state(1), _write)
    (tmp_path / "latest").write_bytes(b"\xff\xfe")
    assert _whole(tmp_path) == (tmp_path / "checkpoint-1", [])


def test_a_rank_that_cannot_write_is_such_a_failure(tmp_path: Path) -> None:
    def write(folder: Path) -> list[StoredFile]:
        (folder / "half").touch()
        raise NotSavedError("learner-1 cannot write")

    with pytest.raises(NotSavedError, match="learner-1 cannot write"):
        publish(Checkpoints(tmp_path, keep=1), _state(2), write)
    assert _names(tmp_path) == []


def test_of_a_driver_that_is_killed_during_a_write_nothing_is_left_but_what_was_before(tmp_path: Path) -> None:
    publish(Checkpoints(tmp_path, keep=1), _state(1), _write)
    child = os.fork()
    if child == 0:  # dies as by kill -9, with all files of the ranks there
        _write(Checkpoints(tmp_path, keep=1).begin(_state(2)).folder)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert _names(tmp_path) == [".checkpoint-2.partial", "checkpoint-1", "latest"]
    assert _whole(tmp_path) == (tmp_path / "checkpoint-1", [])
    Checkpoints(tmp_path, keep=1).recover()
    assert _names(tmp_path) == ["checkpoint-1", "latest"]


def test_what_an_interrupted_save_left_is_gone_with_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint-2.partial"
    left.mkdir()
    (left / "left_over").touch()
    published = publish(Checkpoints(tmp_path, keep=2), _state(2), _write)
    assert "left_over" not in _names(published)
    assert _names(tmp_path) == ["checkpoint-2", "latest"]


def test_what_a_resume_passed_over_takes_the_place_of_no_good_one(tmp_path: Path) -> None:
    """Resumed after step 9, as that of step 10 is damaged, and that of step 20 was rolled back."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10):
        publish(checkpoints, _state(step), _write)
    shutil.copytree(tmp_path / "checkpoint-10", tmp_path / "checkpoint-20")
    resumed = Checkpoints(tmp_path, 2, tmp_path / "checkpoint-9")
    publish(resumed, _state(15), _write)
    assert _names(tmp_path) == ["checkpoint-15", "checkpoint-20", "checkpoint-9", "latest"]
    publish(resumed, _state(22), _write)
    assert _names(tmp_path) == ["checkpoint-15", "checkpoint-22", "latest"]


def test_a_step_that_is_published_again_has_the_new_content_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (publish(checkpoints, _state(5), _write) / "extra").touch()
    again = replace(_state(5), groups_used=40)
    published = publish(checkpoints, again, lambda folder: _write(folder, b"other weights"))
    assert _names(tmp_path) == ["checkpoint-5", "latest"]
    assert read_state(published) == again
    assert (published / "model.safetensors").read_bytes() == b"other weights"
    assert not (published / "extra").exists()


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_there_is_a_whole_checkpoint_wherever_a_second_save_of_a_step_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Killed before the first rename of a folder, between both, and after the second."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    publish(checkpoints, _state(5), _write)
    done = []
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if len(done) == moves:
            os._exit(9)
        done.append(path)
        result = rename(path, target)
        if len(done) == moves == 2:
            os._exit(9)
        return result

    child = os.fork()
    if child == 0:  # dies as by kill -9: no `finally` runs
        monkeypatch.setattr(Path, "rename", die)
        publish(checkpoints, replace(_state(5), groups_used=40), lambda folder: _write(folder, b"other"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    Checkpoints(tmp_path, keep=1).recover()
    assert _names(tmp_path) == ["checkpoint-5", "latest"]
    assert _whole(tmp_path) == (tmp_path / "checkpoint-5", [])
    assert read_state(tmp_path / "checkpoint-5").groups_used == (40 if moves == 2 else 4)


def test_a_checkpoint_whose_shards_are_on_another_node_is_not_published(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    publish(checkpoints, _state(5), _write)
    shard = StoredFile("learner_state/optimizer-00001-00000.safetensors", 10, "digest")
    for step in (5, 6):
        with pytest.raises(RuntimeError, match=rf"step {step} is not complete: 1 files .*, e\.g\. {shard.name}\."):
            publish(checkpoints, replace(_state(step), groups_used=40), lambda folder: [*_write(folder), shard])
    assert _names(tmp_path) == ["checkpoint-5", "latest"]
    assert read_state(latest_checkpoint(tmp_path)) == _state(5)


def _cut_off(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 3)


def _alter(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"Weights")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "model.safetensors has 3 bytes and was written with 7": _cut_off,
    "model.safetensors has other bytes than were written": _alter,
    "learner_state/optimizer.json is missing": lambda checkpoint: shutil.rmtree(checkpoint / "learner_state"),
    "state.json has 0 bytes": lambda checkpoint: os.truncate(checkpoint / "state.json", 0),
    "manifest.json is missing": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "manifest.json cannot be read": lambda checkpoint: os.truncate(checkpoint / "manifest.json", 40),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_loudly(tmp_path: Path, what: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        publish(checkpoints, _state(step), _write)
    DAMAGE[what](tmp_path / "checkpoint-3")
    found, said = _whole(tmp_path)
    assert found == tmp_path / "checkpoint-2"
    assert len(said) == 1
    assert f"{tmp_path / 'checkpoint-3'} is damaged and is not used: {what}" in said[0]
    # The step is done again, and takes the place of the damaged one.
    publish(checkpoints, _state(3), _write)
    assert _whole(tmp_path) == (tmp_path / "checkpoint-3", [])


def test_where_no_checkpoint_is_whole_the_error_says_so(tmp_path: Path) -> None:
    publish(Checkpoints(tmp_path, keep=1), _state(1), _write)
    _cut_off(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"none of the checkpoints .* is whole: model\.safetensors has 3 bytes"):
        _whole(tmp_path)


@pytest.mark.parametrize("pointer", [None, "checkpoint-7\n", "../../elsewhere\n", ""])
def test_without_a_pointer_to_a_checkpoint_the_newest_is_taken(tmp_path: Path, pointer: str | None) -> None:
    for step in (9, 10):
        publish(Checkpoints(tmp_path, keep=2), _state(step), _write)
    (tmp_path / "latest").unlink()
    if pointer is not None:
        (tmp_path / "latest").write_text(pointer)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_no_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without --resume"):
        latest_checkpoint(tmp_path)


def test_a_broken_state_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 1}')
    with pytest.raises(ValueError, match=r"state\.json"):
        read_state(tmp_path)
