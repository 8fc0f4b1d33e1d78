"""Buckets: their layout, reading them, what their digest knows, and joining those of several ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medr1_ray.weights.buckets import (
    merge_updates,
    packed_bucket,
    read_bucket,
    size_bytes,
    without_held,
    write_buckets,
)
from medr1_ray.weights.messages import TensorSpec, WeightBucket, WeightUpdate
from tests.unit.weights.tensors import TENSORS, in_store, written


def test_layout_is_aligned_and_a_large_tensor_gets_a_bucket_of_its_own() -> None:
    update = written()
    layout = [[(spec.name, spec.offset) for spec in bucket.tensors] for bucket in update.buckets]
    assert layout == [[("a", 0), ("b", 64)], [("c", 0)], [("d", 0), ("e", 64)]]
    assert [bucket.size_bytes for bucket in update.buckets] == [128, 448, 64]
    assert update.buckets[0].tensors[0].dtype == "bfloat16"
    assert update.buckets[1].tensors[0].shape == (10, 10)


def test_a_bucket_is_filled_to_its_last_byte_and_none_is_empty() -> None:
    small = [(name, torch.zeros(16)) for name in "abc"]  # 64 bytes each
    assert [len(bucket.tensors) for bucket in write_buckets(small, 0, 128, in_store).buckets] == [2, 1]
    large = [("large", torch.zeros(100)), *small]
    assert [len(bucket.tensors) for bucket in write_buckets(large, 0, 128, in_store).buckets] == [1, 2, 1]
    assert write_buckets([], 0, 128, in_store).buckets == ()


def test_the_gap_after_a_tensor_is_no_rest_of_another() -> None:
    short = ("short", torch.ones(3))  # 12 bytes, and a gap of 52
    (alone,) = write_buckets([short], 0, 64, in_store).buckets
    _, after = write_buckets([("long", torch.ones(16)), short], 0, 64, in_store).buckets
    assert after.digest == alone.digest
    assert not after.data[12:].any()


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
    with pytest.raises(ValueError, match="'w' occurs twice"):
        write_buckets([("w", torch.zeros(1)), ("w", torch.zeros(1))], 0, 64, in_store)


def test_the_digest_knows_version_contents_and_shapes() -> None:
    assert written().digest == written().digest
    assert written(version=4).digest != written().digest
    other = {**TENSORS, "b": torch.tensor(3.25)}
    assert write_buckets(other.items(), 3, 128, in_store).digest != written().digest
    reshaped = {**TENSORS, "a": TENSORS["a"].reshape(5, 3)}
    assert write_buckets(reshaped.items(), 3, 128, in_store).digest != written().digest


def test_what_an_engine_holds_is_listed_and_not_sent() -> None:
    buckets = (
        WeightBucket((), 8, "frozen and held", "a", frozen=True),
        WeightBucket((), 8, "frozen", "b", frozen=True),
        WeightBucket((), 8, "trained", "c"),
    )
    update = WeightUpdate(3, buckets, "d")
    left = without_held(update, frozenset({"frozen and held", "trained"}))
    assert [(bucket.sent, bucket.data) for bucket in left.buckets] == [(False, None), (True, "b"), (True, "c")]
    assert [bucket.digest for bucket in left.buckets] == [bucket.digest for bucket in buckets]
    assert (left.version, left.digest) == (3, "d")


def test_packed_tensors_have_no_gaps() -> None:
    # 15, 1 and 100 numbers of 4 bytes.
    specs = [TensorSpec(name, "float32", shape, 0) for name, shape in (("a", (3, 5)), ("b", ()), ("c", (10, 10)))]
    bucket = packed_bucket(specs, "d", frozen=True)
    assert [spec.offset for spec in bucket.tensors] == [0, 60, 64]
    assert (bucket.size_bytes, bucket.digest, bucket.frozen, bucket.sent) == (464, "d", True, True)
    assert [size_bytes(spec) for spec in bucket.tensors] == [60, 4, 400]
    assert size_bytes(TensorSpec("h", "bfloat16", (3, 5), 0)) == 30
    assert size_bytes(TensorSpec("e", "bool", (0, 4), 0)) == 0
    assert packed_bucket([], "").size_bytes == 0


def test_tensors_of_several_types_cannot_be_packed() -> None:
    specs = [TensorSpec("a", "float32", (1,), 0), TensorSpec("b", "bfloat16", (1,), 0)]
    with pytest.raises(ValueError, match=r"several dtypes \(bfloat16, float32\).*weight_transport=object_store"):
        packed_bucket(specs, "")


def of_rank(gpu: str | None, *, digest: str = "same") -> WeightUpdate:
    """Two buckets, whose handles are the GPU's name with the bucket's number."""
    handles = ({gpu: f"{gpu} {i}"} for i in range(2))
    return WeightUpdate(5, tuple(WeightBucket((), 8, str(i), each) for i, each in enumerate(handles)), digest)


def test_an_update_of_several_ranks_has_the_handles_of_all_their_gpus() -> None:
    merged = merge_updates([of_rank("a"), None, of_rank("b")])
    assert [bucket.data for bucket in merged.buckets] == [{"a": "a 0", "b": "b 0"}, {"a": "a 1", "b": "b 1"}]
    assert (merged.version, merged.digest, [bucket.digest for bucket in merged.buckets]) == (5, "same", ["0", "1"])


def test_where_the_others_leave_it_to_rank_0_its_update_stays_as_it_is() -> None:
    only = of_rank("a")
    assert merge_updates([only, None, None]) is only


def test_ranks_with_different_parameters_are_found() -> None:
    with pytest.raises(ValueError, match=r"version 5: the learner ranks hold different parameters .*same and other"):
        merge_updates([of_rank("a"), of_rank("b"), of_rank("c", digest="other")])
