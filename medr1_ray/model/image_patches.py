"""Per-image work of a learner rank: patches computed ahead in threads, and the output of a frozen vision tower.

Both are cached for the most recently used images, since an epoch asks several questions about each image, and patches
for as many as a step has: they are asked for by the reference and again by the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from medr1_ray.base.bounded_cache import BoundedCache
from medr1_ray.model.packing import Images
from medr1_ray.types import Image, StoredImage, all_pixels, pixels_digest, pixels_of

PATCH_CACHE_BYTES = 512 * 2**20
FEATURE_CACHE_BYTES = 512 * 2**20

# Patches hold each pixel's three colours twice (an image counts as two equal frames), in float32.
PATCH_BYTES_PER_IMAGE_BYTE = 2 * 4


class ImagePatcher:
    """Cuts images into patches with the checkpoint's own image processor, as the engine does.

    `begin` starts the work on images that will be needed; calling the object waits for it. What was begun is kept,
    however much it is, until `step_done`.
    """

    def __init__(self, path: str | Path, threads: int = 1, cache_bytes: int = PATCH_CACHE_BYTES) -> None:
        self._processor: Any = AutoImageProcessor.from_pretrained(path)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="patches")
        # Futures, so that an image requested while it is being patched is not patched twice.
        self._cache: BoundedCache[Future[tuple[Tensor, Tensor]]] = BoundedCache(cache_bytes)
        self._begun: set[str] = set()
        self._begun_before: set[str] = set()

    def begin(self, images: Sequence[Image]) -> tuple[str, ...]:
        """Start patching images; return their digests. Waits for pixels that are elsewhere: a reference to them that
        outlasts the call costs its owner, the driver (`rollout/request_images.py`)."""
        digests = tuple(map(_digest, images))
        self._begun.update(digests)
        self._cache.keep(self._begun | self._begun_before)
        new = {digest: image for digest, image in zip(digests, images, strict=True) if digest not in self._cache}
        for digest, pixels in zip(new, all_pixels(list(new.values())), strict=True):
            self._find(digest, pixels)
        return digests

    def step_done(self, digests: Iterable[str]) -> None:
        """Keep the images of these digests no longer: their step is done. Those of groups that were dropped go with the
        step after the one that they were begun in."""
        self._begun_before = self._begun.difference(digests)
        self._begun = set()
        self._cache.keep(self._begun_before)

    def __call__(self, images: Sequence[Image]) -> Images:
        """Return the patches of images, which may differ in size."""
        digests = tuple(map(_digest, images))
        found = [self._find(digest, image) for digest, image in zip(digests, images, strict=True)]
        patches, grids = zip(*(future.result() for future in found), strict=True)
        grid = torch.cat(grids)
        visual = grid.prod(dim=1) // self._processor.merge_size**2
        return Images(torch.cat(patches), grid, tuple(visual.tolist()), digests)

    def _find(self, digest: str, image: Image) -> Future[tuple[Tensor, Tensor]]:
        size = math.prod(image.shape) * PATCH_BYTES_PER_IMAGE_BYTE
        return self._cache.get(digest, lambda: self._threads.submit(self._patch, image), lambda _: size)

    def _patch(self, image: Image) -> tuple[Tensor, Tensor]:
        # One at a time: for several images the processor concatenates all patches once more, which takes longer than
        # the patching itself (images of 392 pixels: 11 ms each in a batch of 8, 4 to 5 ms alone).
        tensor = torch.from_numpy(np.ascontiguousarray(pixels_of(image).transpose(2, 0, 1)))
        patches = self._processor(images=[tensor], input_data_format="channels_first", return_tensors="pt")
        return patches["pixel_values"], patches["image_grid_thw"]


class FrozenFeatures:
    """Cached outputs of a frozen vision tower, computed once per image and shared by policy and reference."""

    def __init__(self, cache_bytes: int = FEATURE_CACHE_BYTES) -> None:
        self._cache: BoundedCache[Tensor] = BoundedCache(cache_bytes)

    def __call__(self, images: Images, tower: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the features [visual tokens, H] of all images, concatenated.

        Args:
            tower: computes the features of one image from its patches and its grid int64 [1, 3].
        """
        pixels = images.pixel_values.split(images.grid_thw.prod(dim=1).tolist())
        features = []
        for digest, patches, grid in zip(images.digests, pixels, images.grid_thw, strict=True):

            def make(patches: Tensor = patches, grid: Tensor = grid) -> Tensor:
                with torch.no_grad():
                    return tower(patches, grid[None])

            features.append(self._cache.get(digest, make, lambda made: made.numel() * made.element_size()))
        return torch.cat(features)


def _digest(image: Image) -> str:
    return image.digest if isinstance(image, StoredImage) else pixels_digest(image)
