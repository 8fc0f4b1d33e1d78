"""Patches and frozen features are computed once per image; patches also ahead of use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from medr1_ray.config import tiny_model_path
from medr1_ray.model.image_patches import FrozenFeatures, ImagePatcher


def images(*seeds, size=(56, 84)):
    return [np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed in seeds]


def counted(**settings):
    """Return a patcher, and the list of the images that its processor receives."""
    patch, met = ImagePatcher(tiny_model_path(), **settings), []
    processor = patch._processor

    def count(images, **settings):
        met.extend(images)
        return processor(images=images, **settings)

    count.merge_size = processor.merge_size
    patch._processor = count
    return patch, met


def test_an_image_is_patched_once_even_when_begun_ahead():
    patch, met = counted(threads=2)
    begun = patch.begin(images(1, 2))
    first = patch(images(1, 2, 1))
    again = patch(images(2, 1))
    assert len(met) == 2
    assert first.grid_thw.tolist() == [[1, 4, 6]] * 3
    one, two, repeated = first.pixel_values.split(24)
    assert torch.equal(one, repeated)
    assert torch.equal(again.pixel_values, torch.cat([two, one]))
    assert first.digests == (*begun, begun[0])
    assert again.digests == begun[::-1]


def test_the_same_bytes_in_another_shape_are_another_image():
    patch, met = counted()
    (image,) = images(1)
    patch([image, image.reshape(84, 56, 3)])
    assert len(met) == 2


def test_a_failure_reaches_whoever_asks():
    patch, _ = counted()
    patch.begin([np.zeros((1, 500, 3), np.uint8)])  # too long for the processor
    with pytest.raises(ValueError, match="aspect ratio"):
        patch([np.zeros((1, 500, 3), np.uint8)])


# An image of 56 x 84 pixels has 4 x 6 patches of 3 colours x 2 frames x 14 x 14 pixels in float32.
PATCH_BYTES = 24 * 3 * 2 * 14 * 14 * 4


@pytest.mark.parametrize(("cache_bytes", "patched"), [(2 * PATCH_BYTES, 4), (2 * PATCH_BYTES - 1, 5)])
def test_patches_take_no_more_memory_than_they_may(cache_bytes, patched):
    patch, met = counted(cache_bytes=cache_bytes)
    assert patch(images(1)).pixel_values.nbytes == PATCH_BYTES
    for seed in (2, 1, 3, 2):
        patch(images(seed))
    # Of two that fit: 1 is still there, 3 drives out 2, which is patched again. Of one that fits: every time anew.
    assert len(met) == patched


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


def test_images_of_a_step_are_patched_once_however_many_they_are():
    """For the reference, and again for the update, in the same order: an LRU cache would find none of them."""
    patch, met = counted(cache_bytes=2 * PATCH_BYTES)
    step = images(*range(6))
    patch.begin(step)
    for _ in range(2):
        for pair in (step[:2], step[2:4], step[4:]):
            patch(pair)
    assert len(met) == 6
    patch.step_done(patch.begin(step))
    patch(images(5, 4))
    assert len(met) == 6
    patch(images(0))
    assert len(met) == 7, "two fit after the step"


def test_images_that_were_begun_for_the_next_step_stay_and_those_of_dropped_groups_go():
    patch, met = counted(cache_bytes=PATCH_BYTES)
    now, following = images(1, 2), images(5, 3, 4)
    patch.begin(following)  # 5 is of a group that will be too old
    for _ in range(2):
        digests = patch.begin(now)
        patch(now)
        patch.step_done(digests)
        now = following[1:]
    patch.begin(following[2:])
    assert len(met) == 5, "3 and 4 were still there"
    patch(images(5))
    assert len(met) == 6


@pytest.mark.parametrize(("features_fit", "run"), [(2, 4), (1, 5)])
def test_features_count_as_much_as_they_are(features_fit, run):
    # A frozen tower's features are smaller than the patches: three numbers here for each of six visual tokens.
    size = 6 * 3 * 4
    patch, features, runs = ImagePatcher(tiny_model_path()), FrozenFeatures(features_fit * size), []

    def tower(patches, grid):
        runs.append(grid)
        return patches[::4, :3].clone()

    for seed in (1, 2, 1, 3, 2):
        features(patch(images(seed)), tower)
    assert len(runs) == run  # as for patches


def test_patches_are_those_of_the_checkpoints_processor():
    random = np.random.default_rng(1)
    # The second size is not a multiple of 28 and is resized.
    pictures = [random.integers(0, 256, size, dtype=np.uint8) for size in [(84, 84, 3), (101, 75, 3), (84, 84, 3)]]
    found = ImagePatcher(tiny_model_path())(pictures)
    processor = AutoProcessor.from_pretrained(tiny_model_path())
    expected = processor.image_processor([Image.fromarray(image) for image in pictures], return_tensors="pt")
    assert found.grid_thw.tolist() == expected["image_grid_thw"].tolist()
    assert found.visual_tokens == (9, 12, 9)  # 101 x 75 becomes 112 x 84
    torch.testing.assert_close(found.pixel_values, expected["pixel_values"])
