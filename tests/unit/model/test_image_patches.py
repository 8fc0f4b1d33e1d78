"""Patches once per image, ahead of need; a frozen tower's features once per image."""

import numpy as np
import pytest
import torch

from medr1_ray.base.bounded_cache import BoundedCache
from medr1_ray.config import tiny_model_path
from medr1_ray.model.image_patches import FrozenFeatures, ImagePatcher


def images(*seeds, size=(56, 84)):
    return [np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed in seeds]


class TestBoundedCache:
    def test_what_was_used_last_stays(self):
        cache = BoundedCache(limit_bytes=10)
        made = []
        for key in ["a", "b", "a", "c", "b", "a"]:
            assert cache.get(key, lambda key=key: made.append(key) or key, size_bytes=5) == key
        # Two fit: c pushes b out (a was used after it), b then a, and a c.
        assert made == ["a", "b", "c", "b", "a"]

    def test_a_value_above_the_limit_is_kept_alone(self):
        cache = BoundedCache(limit_bytes=10)
        cache.get("a", lambda: "a", 5)
        cache.get("large", lambda: "large", 50)
        assert len(cache) == 1
        assert cache.get("large", lambda: pytest.fail("made again"), 50) == "large"


class TestImagePatcher:
    @pytest.fixture
    def counted(self):
        """A patcher, and the images that its processor has met."""
        patch, met = ImagePatcher(tiny_model_path(), threads=2), []
        processor = patch._processor

        def count(images, **settings):
            met.extend(images)
            return processor(images=images, **settings)

        count.merge_size = processor.merge_size
        patch._processor = count
        return patch, met

    def test_an_image_is_patched_once_even_when_begun_ahead(self, counted):
        patch, met = counted
        patch.begin(images(1, 2))
        first = patch(images(1, 2, 1))
        again = patch(images(2, 1))
        assert len(met) == 2
        assert first.grid_thw.tolist() == [[1, 4, 6]] * 3
        one, two, repeated = first.pixel_values.split(24)
        assert torch.equal(one, repeated)
        assert torch.equal(again.pixel_values, torch.cat([two, one]))
        assert first.digests == (again.digests[1], again.digests[0], again.digests[1])

    def test_the_same_bytes_in_another_shape_are_another_image(self, counted):
        patch, met = counted
        (image,) = images(1)
        patch([image, image.reshape(84, 56, 3)])
        assert len(met) == 2

    def test_a_failure_reaches_whoever_asks(self, counted):
        patch, _ = counted
        patch.begin([np.zeros((1, 500, 3), np.uint8)])  # too long for the processor
        with pytest.raises(ValueError, match="aspect ratio"):
            patch([np.zeros((1, 500, 3), np.uint8)])


def test_a_frozen_tower_runs_once_per_image():
    patch, runs = ImagePatcher(tiny_model_path()), []

    def tower(patches, grid):
        assert not torch.is_grad_enabled()
        runs.append(grid.tolist())
        return patches[::4].sum(1, keepdim=True)  # one feature for each visual token of four patches

    features = FrozenFeatures()
    found = features(patch([*images(1), *images(2, size=(56, 56))]), tower)
    again = features(patch([*images(2, size=(56, 56)), *images(1)]), tower)
    assert runs == [[[1, 4, 6]], [[1, 4, 4]]]
    assert torch.equal(torch.cat([found[6:], found[:6]]), again)
