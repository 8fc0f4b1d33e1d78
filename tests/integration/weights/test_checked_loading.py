"""What an engine holds from earlier updates, at the backend of the object store: frozen layers and torn ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.weights.engine.checked_loading import UpdateInfo
from medr1_ray.weights.engine.object_store import StagedTransferEngine
from medr1_ray.weights.messages import WeightUpdate
from medr1_ray.weights.transports import object_store as weight_object_store
from medr1_ray.weights.transports.object_store import ObjectStoreReceiver, ObjectStoreSender
from tests.integration.weights import small_engine as small

NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(weight_object_store, "SHARED_MEMORY", tmp_path)
    return small.engine(StagedTransferEngine, tmp_path)


def sender() -> ObjectStoreSender:
    return ObjectStoreSender(lambda array: array.copy(), rank=0, bucket_bytes=1024)


def published(end: ObjectStoreSender, seed: int, version: int, frozen: str = "visual.") -> WeightUpdate:
    update = end.publish(small.Source(small.weights_of(seed), frozen), version, to_newcomers=False)
    assert update is not None
    return update


def load(engine: Any, update: WeightUpdate, held: frozenset[str] = NOTHING) -> None:
    engine.abandon()
    engine.start_weight_update()
    with ObjectStoreReceiver(lambda array: array).receive(update, held) as (payload,):
        engine.receive_weights(UpdateInfo(payload))
    engine.finish_weight_update()


def frozen_digests(update: WeightUpdate) -> frozenset[str]:
    return frozenset(bucket.digest for bucket in update.buckets if bucket.frozen)


def test_layers_that_are_not_sent_keep_what_they_have(engine: Any) -> None:
    end = sender()
    first = published(end, 1, 1)
    load(engine, first)
    engine.model.loads.clear()
    load(engine, published(end, 2, 2), frozen_digests(first))
    assert engine.model.loads == [["first.weight", "first.bias", "second.weight"]]
    old, new = small.weights_of(1), small.weights_of(2)
    assert small.equal(small.held(engine), {name: (old if "visual" in name else new)[name] for name in old})


def test_who_was_told_to_hold_what_it_does_not_refuses_and_changes_nothing(engine: Any) -> None:
    before = {name: tensor.clone() for name, tensor in small.held(engine).items()}
    update = published(sender(), 1, 1)
    with pytest.raises(ValueError, match="was not sent and is not held"):
        load(engine, update, frozen_digests(update))
    assert small.equal(small.held(engine), before)


@pytest.mark.parametrize("forgetting", ["a load that broke off", "sleep"])
def test_what_was_held_is_no_longer_after(forgetting: str, engine: Any) -> None:
    end = sender()
    first = published(end, 1, 1)
    load(engine, first)
    if forgetting == "sleep":
        engine.forget()
    else:
        broken = published(end, 2, 2)
        engine.open_for(broken)
        engine.model.load_weights([("first.weight", small.weights_of(2)["first.weight"])])
    update = published(end, 3, 3)
    with pytest.raises(ValueError, match="was not sent and is not held"):
        load(engine, update, frozen_digests(first))
    load(engine, update)
    old, new = small.weights_of(1), small.weights_of(3)
    assert small.equal(small.held(engine), {name: (old if "visual" in name else new)[name] for name in old})


def test_a_layer_of_which_only_a_part_is_frozen_is_refused_and_the_next_whole_update_heals(engine: Any) -> None:
    end = sender()
    first = published(end, 1, 1, frozen="first.weight")
    load(engine, first)
    with pytest.raises(ValueError, match=r"layer 'first' \(Linear\) fuses frozen and trained parameters"):
        load(engine, published(end, 2, 2, frozen="first.weight"), frozen_digests(first))
    load(engine, published(sender(), 3, 3))
    assert small.equal(small.held(engine), small.weights_of(3))


def test_a_bucket_that_changed_in_the_store_is_found_before_the_model_is_touched(engine: Any) -> None:
    before = {name: tensor.clone() for name, tensor in small.held(engine).items()}
    update = published(sender(), 1, 1)
    data = update.buckets[1].data.copy()
    data[5] ^= 1
    wrong = replace(update, buckets=(update.buckets[0], replace(update.buckets[1], data=data)))
    with pytest.raises(ValueError, match="has digest"):
        load(engine, wrong)
    assert small.equal(small.held(engine), before)
