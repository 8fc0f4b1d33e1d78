"""Buckets and their file: layout, digests, and who removes what."""

import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medr1_ray.base import code_digest
from medr1_ray.weights.buckets import read_bucket, write_buckets
from medr1_ray.weights.digests import WeightDigestError
from medr1_ray.weights.messages import TensorSpec, WeightUpdate
from medr1_ray.weights.transports import object_store as weight_object_store
from medr1_ray.weights.transports.object_store import (
    ObjectStoreReceiver,
    ObjectStoreSender,
    open_staged,
    staged,
)

TENSORS = {
    "a": torch.arange(15, dtype=torch.bfloat16).reshape(3, 5),  # 30 bytes
    "b": torch.tensor(3.5),  # 4 bytes
    "c": torch.arange(100, dtype=torch.float32).reshape(10, 10).T,  # 400 bytes, not contiguous
    "d": torch.tensor([True, False, True]),  # 3 bytes
    "e": torch.zeros(0, 4),  # nothing
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where files are staged."""
    monkeypatch.setattr(weight_object_store, "SHARED_MEMORY", tmp_path)
    return tmp_path


def in_store(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As an object store does: a copy that nobody can write to."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def written(version: int = 3, bucket_bytes: int = 128) -> WeightUpdate:
    return write_buckets(TENSORS.items(), version, bucket_bytes, in_store)


def as_is(reference: Any) -> Any:
    return reference


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*.weights*"))


def test_layout_is_aligned_and_a_large_tensor_gets_a_bucket_of_its_own() -> None:
    update = written()
    layout = [[(spec.name, spec.offset) for spec in bucket.tensors] for bucket in update.buckets]
    assert layout == [[("a", 0), ("b", 64)], [("c", 0)], [("d", 0), ("e", 64)]]
    assert [bucket.size_bytes for bucket in update.buckets] == [128, 448, 64]
    assert update.buckets[0].tensors[0].dtype == "bfloat16"
    assert update.buckets[1].tensors[0].shape == (10, 10)


def test_tensors_come_back_bit_for_bit(directory: Path) -> None:
    with staged(written(), as_is) as update:
        back = dict(named for bucket, buffer in open_staged(update) for named in read_bucket(buffer, bucket))
    assert list(back) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_reading_copies_nothing() -> None:
    bucket = written().buckets[0]
    buffer = bucket.data.copy()
    tensors = dict(read_bucket(buffer, bucket))
    assert tensors["b"].data_ptr() == buffer.ctypes.data + 64


def test_each_tensor_is_copied_before_the_next_is_asked_for() -> None:
    shared = torch.zeros(4)

    def gathered() -> Any:
        for value in (1.0, 2.0):
            yield f"w{value:g}", shared.fill_(value)

    (bucket,) = write_buckets(gathered(), 0, 1024, in_store).buckets
    first, second = (tensor for _, tensor in read_bucket(bucket.data.copy(), bucket))
    assert first.tolist() == [1.0] * 4
    assert second.tolist() == [2.0] * 4


def test_a_parameter_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'w' was sent twice"):
        write_buckets([("w", torch.zeros(1)), ("w", torch.zeros(1))], 0, 64, in_store)


def test_the_digest_knows_version_contents_and_shapes() -> None:
    assert written().digest == written().digest
    assert written(version=4).digest != written().digest
    other = {**TENSORS, "b": torch.tensor(3.25)}
    assert write_buckets(other.items(), 3, 128, in_store).digest != written().digest
    reshaped = {**TENSORS, "a": TENSORS["a"].reshape(5, 3)}
    assert write_buckets(reshaped.items(), 3, 128, in_store).digest != written().digest


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


def test_without_shared_memory_the_temp_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_object_store, "SHARED_MEMORY", tmp_path / "not-there")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with staged(written(), as_is) as update:
        assert Path(update.path).is_relative_to(tmp_path)
        assert len(open_staged(update)) == 3


class Source:
    """`TENSORS`, of which `c` and `d` are frozen; notes what was gone through."""

    def __init__(self) -> None:
        self.gathered: list[str] = []

    def specs(self, *, frozen: bool) -> list[TensorSpec]:
        raise AssertionError("the object store needs no specs")

    def tensors(self, *, frozen: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in TENSORS.items():
            if (name in "cd") == frozen:
                self.gathered.append(name)
                yield name, tensor


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
    updates = [sender.offer(source, version, to_newcomers=False) for version in (1, 2)]
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
    assert ObjectStoreSender(never, rank=1).offer(source, 1, to_newcomers=True) is None
    assert source.gathered == [*"cdabe"]


def test_changed_code_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "code_digest.py").write_bytes(Path(code_digest.__file__).read_bytes())
    (tmp_path / "part").mkdir()
    part = tmp_path / "part" / "module.py"

    def digest() -> str:
        spec = importlib.util.spec_from_file_location("copy", tmp_path / "code_digest.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return str(module.code_digest())

    part.write_text("x = 1")
    before = digest()
    assert digest() == before
    part.write_text("x = 2")
    assert digest() != before
