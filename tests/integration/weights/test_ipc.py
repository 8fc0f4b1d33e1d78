"""The CUDA IPC transport around recorded handles: buckets, whose handle is read, proofs, and what is freed when."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions

from medr1_ray.weights.buckets import merge_updates
from medr1_ray.weights.digests import WeightDigestError
from medr1_ray.weights.engine.checked_loading import UpdateInfo
from medr1_ray.weights.engine.ipc import IpcTransferEngine
from medr1_ray.weights.messages import TensorSpec, WeightUpdate
from medr1_ray.weights.transports.ipc import Handles, IpcReceiver, IpcSender, cut
from tests.integration.weights import small_engine as small

DEVICE_ARGUMENT = 6  # of `rebuild_cuda_tensor`: the reader's own device goes there


class Gpus:
    """Memory that is exported under a handle, and who read it; `of` says which GPU a process sees as its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory: dict[int, torch.Tensor] = {}
        self.read: list[tuple[int, Any]] = []
        self.of = "GPU-a"
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=self.of))
        monkeypatch.setattr(reductions, "rebuild_cuda_tensor", self._rebuild)

    def export(self, gpu: str) -> Any:
        def handle(buffer: torch.Tensor) -> Handles:
            key = len(self.memory)
            self.memory[key] = buffer
            return {gpu: (key, *[None] * (DEVICE_ARGUMENT - 1), "the exporter's device")}

        return handle

    def _rebuild(self, key: int, *arguments: Any) -> torch.Tensor:
        self.read.append((key, arguments[DEVICE_ARGUMENT - 1]))
        return self.memory[key]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    return Gpus(monkeypatch)


def published(gpus: Gpus, weights: Any, version: int, names: tuple[str, ...] = ("GPU-a", "GPU-b")) -> Any:
    """An update by one rank per GPU, and the ranks' ends."""
    senders = [IpcSender(torch.device("cpu"), 100, gpus.export(name)) for name in names]
    offers = [sender.publish(small.Source(weights), version, to_newcomers=True) for sender in senders]
    return merge_updates(offers), senders


def load(engine: Any, update: WeightUpdate) -> None:
    engine.abandon()
    engine.start_weight_update()
    with IpcReceiver().receive(update, frozenset()) as payloads:
        for payload in payloads:
            engine.receive_weights(UpdateInfo(payload))
    engine.finish_weight_update()


def test_buckets_are_cut_in_order_and_a_large_tensor_is_alone() -> None:
    specs = [
        TensorSpec(name, "bfloat16", (size,), 0) for name, size in (("a", 20), ("b", 30), ("c", 51), ("d", 1))
    ]
    assert [[spec.name for spec in bucket] for bucket in cut(specs, 100)] == [["a", "b"], ["c"], ["d"]]
    assert cut([], 100) == []


def test_every_engine_reads_the_memory_of_its_own_gpu(gpus: Gpus, tmp_path: Path) -> None:
    weights = small.weights_of(3)
    update, _ = published(gpus, weights, 1)
    assert [bucket.size_bytes for bucket in update.buckets] == [64, 100, 6000]
    for name, keys in (("GPU-a", [0, 1, 2]), ("GPU-b", [3, 4, 5])):
        gpus.of, gpus.read = name, []
        engine = small.engine(IpcTransferEngine, tmp_path)
        load(engine, update)
        assert small.equal(small.held(engine), weights)
        assert gpus.read == [(key, engine.device.index) for key in keys]
        assert engine._packed_importer._entry is None  # the learner's memory is let go of


def test_an_engine_on_another_gpu_finds_no_handle(gpus: Gpus, tmp_path: Path) -> None:
    update, _ = published(gpus, small.weights_of(3), 1)
    gpus.of = "GPU-c"
    with pytest.raises(ValueError, match="IPC handle not found for GPU UUID GPU-c"):
        load(small.engine(IpcTransferEngine, tmp_path), update)


def test_changed_memory_is_found_before_it_is_loaded_and_a_good_update_heals(gpus: Gpus, tmp_path: Path) -> None:
    engine = small.engine(IpcTransferEngine, tmp_path)
    update, _ = published(gpus, small.weights_of(3), 1)
    gpus.memory[1][17] ^= 1
    with pytest.raises(WeightDigestError, match="it was not loaded"):
        load(engine, update)
    assert engine.model.loads == [["visual.weight", "visual.bias"]]
    again, _ = published(gpus, small.weights_of(4), 2)
    load(engine, again)
    assert small.equal(small.held(engine), small.weights_of(4))


def test_ranks_whose_parameters_have_come_apart_are_found(gpus: Gpus) -> None:
    offers = [
        IpcSender(torch.device("cpu"), 100, gpus.export(gpu)).publish(
            small.Source(small.weights_of(seed)), 5, to_newcomers=True
        )
        for gpu, seed in (("GPU-a", 1), ("GPU-b", 2))
    ]
    with pytest.raises(ValueError, match="policy version 5: the learner ranks hold different parameters"):
        merge_updates(offers)


def test_what_was_exported_lives_until_it_is_released(gpus: Gpus) -> None:
    update, (sender,) = published(gpus, small.weights_of(3), 1, ("GPU-a",))
    assert not update.lasting
    assert pickle.loads(pickle.dumps(update)) == update
    assert sum(buffer.numel() for buffer in sender._buffers) == 6164
    sender.release()
    assert sender._buffers == []
