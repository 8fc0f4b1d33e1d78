"""Checkpoints are whole or not there, and say where a run stood."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medr1_ray.data.stream import StreamState
from medr1_ray.records.checkpoints import Checkpoints, RunState, read_state


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
        completions=32,
        seconds={"rollout": 1.5},
        config_digest="c",
    )


def _write(folder: Path) -> list[str]:
    (folder / "model.safetensors").write_bytes(b"weights")
    return ["model.safetensors"]


def test_a_published_checkpoint_is_read_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    published = checkpoints.publish(_state(10), _write)
    assert checkpoints.latest() == published == tmp_path / "checkpoint-10"
    assert read_state(published) == _state(10)
    assert (published / "model.safetensors").read_bytes() == b"weights"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 100):
        checkpoints.publish(_state(step), _write)
        assert checkpoints.latest().name == f"checkpoint-{step}"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-100"]


def test_copies_that_somebody_made_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    copies = ["checkpoint-1-merged", "checkpoint-1 (copy)", "checkpoint-best"]
    for name in copies:
        (tmp_path / name).mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (2, 3):
        checkpoints.publish(_state(step), lambda _: [])
    assert checkpoints.latest().name == "checkpoint-3"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == sorted([*copies, "checkpoint-3"])


def _fail(folder: Path) -> list[str]:
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / "left_over").touch()
    raise OSError("disk full")


def test_a_write_that_fails_leaves_the_older_checkpoint_and_none_of_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.publish(_state(1), _write)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.publish(_state(2), _fail)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert checkpoints.latest() == tmp_path / "checkpoint-1"
    assert read_state(checkpoints.latest()) == _state(1)
    assert (checkpoints.latest() / "model.safetensors").read_bytes() == b"weights"


def test_after_a_write_that_failed_the_same_step_is_published_without_what_it_left(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.publish(_state(2), _fail)
    published = checkpoints.publish(_state(2), _write)
    assert checkpoints.latest() == published
    assert sorted(path.name for path in published.iterdir()) == ["model.safetensors", "state.json"]
    assert (published / "model.safetensors").read_bytes() == b"weights"


def test_a_step_that_is_published_again_has_the_new_content_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)

    def write_more(folder: Path) -> list[str]:
        (folder / "extra").touch()
        return [*_write(folder), "extra"]

    checkpoints.publish(_state(5), write_more)

    def write_other(folder: Path) -> list[str]:
        (folder / "model.safetensors").write_bytes(b"other weights")
        return ["model.safetensors"]

    again = replace(_state(5), groups_used=40)
    published = checkpoints.publish(again, write_other)
    assert checkpoints.latest() == published == tmp_path / "checkpoint-5"
    assert read_state(published) == again
    assert (published / "model.safetensors").read_bytes() == b"other weights"
    assert not (published / "extra").exists()


def test_a_step_stays_as_it_was_where_publishing_it_again_fails(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.publish(_state(5), _write)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.publish(replace(_state(5), groups_used=40), _fail)
    assert checkpoints.latest().name == "checkpoint-5"
    assert read_state(checkpoints.latest()) == _state(5)
    assert (checkpoints.latest() / "model.safetensors").read_bytes() == b"weights"


def test_a_checkpoint_whose_shards_are_on_another_node_is_not_published(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.publish(_state(5), _write)
    shard = "learner_state/zero/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    for step in (5, 6):
        with pytest.raises(RuntimeError, match=rf"step {step} is not complete: 1 files .*, e\.g\. {shard}\."):
            checkpoints.publish(replace(_state(step), groups_used=40), lambda folder: [*_write(folder), shard])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    assert checkpoints.latest() == tmp_path / "checkpoint-5"
    assert read_state(checkpoints.latest()) == _state(5)


def test_no_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without --resume"):
        Checkpoints(tmp_path, keep=1).latest()


def test_a_broken_state_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 1}')
    with pytest.raises(ValueError, match=r"state\.json"):
        read_state(tmp_path)
