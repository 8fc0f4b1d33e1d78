"""Updates in an object store and in one file per node: what is fetched, proofs, and who removes what."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medr1_ray.weights.buckets import read_bucket
from medr1_ray.weights.digests import WeightDigestError
from medr1_ray.weights.messages import WeightUpdate
from medr1_ray.weights.transports import object_store
from medr1_ray.weights.transports.object_store import (
    ObjectStoreReceiver,
    ObjectStoreSender,
    open_staged,
    staged,
)
from tests.unit.weights.tensors import TENSORS, Source, as_is, in_store, written


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where files are staged."""
    monkeypatch.setattr(object_store, "SHARED_MEMORY", tmp_path)
    return tmp_path


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*.weights*"))


def test_tensors_come_back_bit_for_bit(directory: Path) -> None:
    with staged(written(), as_is) as update:
        back = dict(named for bucket, buffer in open_staged(update) for named in read_bucket(buffer, bucket))
    assert list(back) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_one_wrong_bit_is_found(directory: Path) -> None:
    update = written()
    update.buckets[1].data.flags.writeable = True
    update.buckets[1].data[17] ^= 1
    with staged(update, as_is) as on_node, pytest.raises(WeightDigestError, match="bucket 1 of 3"):
        open_staged(on_node)


@pytest.mark.parametrize("change", [{"version": 9}, {"buckets": 1}])
def test_another_label_on_the_right_bytes_is_found(directory: Path, change: dict[str, int]) -> None:
    update = written()
    version = change.get("version", update.version)
    forged = WeightUpdate(version, update.buckets[change.get("buckets", 0) :], update.digest)
    with staged(forged, as_is) as on_node, pytest.raises(WeightDigestError, match="nothing was loaded"):
        open_staged(on_node)


def test_actors_of_a_node_share_one_file_that_the_last_removes(directory: Path) -> None:
    fetched: list[int] = []

    def get(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        fetched.append(array.size)
        return array

    with staged(written(), get) as first:
        with staged(written(), get) as second:
            assert first.path == second.path
        assert len(files(directory)) == 1
        assert len(open_staged(first)) == 3
    assert fetched == [128, 448, 64]
    assert files(directory) == []


def test_what_a_crash_left_is_removed_and_what_others_read_is_not(directory: Path) -> None:
    with staged(written(version=1), as_is) as other:
        home = Path(other.path).parent
        (home / "0123.weights").write_bytes(b"of a run that was killed")
        (home / "4567.weights-partial").write_bytes(b"of a run that was killed while writing")
        with staged(written(version=2), as_is) as mine:
            assert files(directory) == sorted([Path(other.path).name, Path(mine.path).name])


def test_a_failed_fetch_leaves_nothing_that_could_be_taken_for_an_update(directory: Path) -> None:
    def get(_: Any) -> NDArray[np.uint8]:
        raise OSError("the object is lost")

    with pytest.raises(OSError, match="lost"), staged(written(), get):
        pass
    assert not [name for name in files(directory) if name.endswith(".weights")]
    with staged(written(), as_is) as update:
        assert len(open_staged(update)) == 3


def test_engines_that_lack_the_frozen_parameters_have_another_file_than_those_that_hold_them(directory: Path) -> None:
    update = ObjectStoreSender(in_store, rank=0, bucket_bytes=1024).publish(Source(), 1, to_newcomers=False)
    assert update is not None
    held = frozenset({update.buckets[0].digest})
    receiver = ObjectStoreReceiver(as_is)
    with receiver.receive(update, held) as (few,), receiver.receive(update, frozenset()) as (all_,):
        opened = [open_staged(pickle.loads(payload)) for payload in (few, all_)]
        assert [[len(bucket.tensors) for bucket, _ in buckets] for buckets in opened] == [[3], [2, 3]]
        assert len(files(directory)) == 2
    assert files(directory) == []


def test_an_engine_that_holds_everything_maps_nothing(directory: Path) -> None:
    update = ObjectStoreSender(in_store, rank=0).publish(Source(frozen="abcde"), 1, to_newcomers=False)
    assert update is not None
    held = frozenset(bucket.digest for bucket in update.buckets)
    with ObjectStoreReceiver(as_is).receive(update, held) as (payload,):
        assert open_staged(pickle.loads(payload)) == []


def test_what_an_engine_does_to_its_weights_changes_no_file(directory: Path) -> None:
    with staged(written(), as_is) as update:
        for _, buffer in open_staged(update):
            buffer[:] = 0
        assert len(open_staged(update)) == 3, "the others still find what the learner sent"


def test_the_folder_is_the_users_own(directory: Path) -> None:
    with staged(written(), as_is) as update:
        assert Path(update.path).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("whose", ["open to others", "a link", "of another user"])
def test_a_folder_that_others_can_write_is_not_used(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    other = os.getuid() + 1
    if whose == "of another user":
        monkeypatch.setattr(os, "getuid", lambda: other)
    folder = directory / f"medr1_ray-{os.getuid()}"
    if whose == "a link":
        folder.symlink_to(tmp_path_factory.mktemp("theirs"))
    else:
        folder.mkdir()
        folder.chmod(0o770 if whose == "open to others" else 0o700)
    with (
        pytest.raises(PermissionError, match="belongs to another user, is a link, or is open to others"),
        staged(written(), as_is),
    ):
        pass


def test_an_update_is_fetched_once_where_there_is_room_for_one_and_a_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, temporary = tmp_path / "shm", tmp_path / "temp"
    shared.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(object_store, "SHARED_MEMORY", shared)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def free(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=960 - sum(path.stat().st_size for path in shared.rglob("*.weights*")))

    monkeypatch.setattr(object_store.shutil, "disk_usage", free)
    with staged(written(), as_is) as first, staged(written(), lambda _: pytest.fail("fetched again")) as second:
        assert first.path == second.path
        assert Path(first.path).is_relative_to(shared)


def test_where_shared_memory_has_no_room_the_temp_folder_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 640 bytes in three buckets.
    for free, place in ((641, "temp"), (1000, "shm")):
        shared, temp = tmp_path / f"shm-{free}", tmp_path / f"temp-{free}"
        shared.mkdir()
        temp.mkdir()
        monkeypatch.setattr(object_store, "SHARED_MEMORY", shared)
        monkeypatch.setattr("tempfile.tempdir", str(temp))
        monkeypatch.setattr(object_store.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        with staged(written(), as_is) as update:
            assert Path(update.path).is_relative_to(tmp_path / f"{place}-{free}")


def test_without_shared_memory_the_temp_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "SHARED_MEMORY", tmp_path / "not-there")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with staged(written(), as_is) as update:
        assert Path(update.path).is_relative_to(tmp_path)
        assert len(open_staged(update)) == 3


def test_frozen_parameters_are_put_once_and_fetched_by_those_who_lack_them(directory: Path) -> None:
    put: list[int] = []

    def store(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        put.append(array.size)
        return in_store(array)

    fetched: list[int] = []

    def get(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        fetched.append(array.size)
        return array

    sender, source = ObjectStoreSender(store, rank=0, bucket_bytes=1024), Source()
    updates = [sender.publish(source, version, to_newcomers=False) for version in (1, 2)]
    assert source.gathered == [*"cd", *"abe", *"abe"]
    assert put == [512, 128, 128]
    first, second = updates
    assert first is not None
    assert second is not None
    assert [bucket.frozen for bucket in second.buckets] == [True, False]
    assert second.lasting
    receiver = ObjectStoreReceiver(get)
    held = frozenset({first.buckets[0].digest})
    for known, names in ((frozenset[str](), [*"cdabe"]), (held, [*"abe"])):
        with receiver.receive(second, known) as (payload,):
            on_node = pickle.loads(payload)
            buckets = open_staged(on_node)
            assert [name for bucket, buffer in buckets for name, _ in read_bucket(buffer, bucket)] == names
            assert on_node.update.digest == second.digest  # of all parameters, those at hand too
    assert fetched == [512, 128, 128]


def test_ranks_other_than_the_first_only_take_part_in_gathering() -> None:
    def never(array: NDArray[np.uint8]) -> Any:
        raise AssertionError("only rank 0 publishes")

    source = Source()
    assert ObjectStoreSender(never, rank=1).publish(source, 1, to_newcomers=True) is None
    assert source.gathered == [*"cdabe"]
