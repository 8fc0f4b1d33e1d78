"""One checkpoint after the other in the same engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.config import tiny_model_path
from medr1_ray.evaluation import inference as module
from medr1_ray.evaluation.inference import Inference
from medr1_ray.model.checkpoint_files import checkpoint_tensors
from medr1_ray.weights.buckets import write_buckets
from medr1_ray.weights.messages import WeightUpdate


class Pool:
    def __init__(self) -> None:
        self.loaded: list[WeightUpdate] = []

    def load_weights(self, update: WeightUpdate) -> None:
        self.loaded.append(update)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(module.ray, "put", lambda array: array.copy())
    return Pool()


def test_every_checkpoint_comes_as_a_later_version(pool: Pool) -> None:
    inference = Inference(pool)  # type: ignore[arg-type]
    for _ in range(2):
        inference.load(tiny_model_path())
    # Engines refuse an older version, and serve on without loading where the digest is that of what they hold.
    assert [update.version for update in pool.loaded] == [1, 2]
    assert pool.loaded[0].digest != pool.loaded[1].digest
    expected = write_buckets(checkpoint_tensors(tiny_model_path()), 2, 2**30, lambda array: None)
    (bucket,) = pool.loaded[1].buckets
    assert (bucket.tensors, bucket.digest) == (expected.buckets[0].tensors, expected.buckets[0].digest)
    assert pool.loaded[1].digest == expected.digest


def test_a_folder_without_a_checkpoint_is_refused_before_anything_is_loaded(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is empty"):
        Inference(pool).load(tmp_path)  # type: ignore[arg-type]
    assert pool.loaded == []
