"""Per-image work of a learner rank: patches computed ahead in threads, and the output of a frozen vision tower.

Both are cached for the most recently used images, since an epoch asks several questions about each image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor

from medr1_ray.base.bounded_cache import BoundedCache
from medr1_ray.model.packing import Images

PATCH_CACHE_BYTES = 512 * 2**20
FEATURE_CACHE_BYTES = 512 * 2**20

# Patches hold each pixel's three colours twice (an image counts as two equal frames), in float32.
_PATCH_BYTES_PER_IMAGE_BYTE = 2 * 4


class ImagePatcher:
    """Cuts images into patches with the checkpoint's own image processor, as the engine does.

    `begin` starts the work on images that will be needed; calling the object waits for it.
    """

    def __init__(self, path: str | Path, threads: int = 1, cache_bytes: int = PATCH_CACHE_BYTES) -> None:
        self._processor: Any = AutoImageProcessor.from_pretrained(path)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="patches")
        # Futures, so that an image requested while it is being patched is not patched twice.
        self._cache: BoundedCache[Future[tuple[Tensor, Tensor]]] = BoundedCache(cache_bytes)

    def begin(self, images: Sequence[NDArray[np.uint8]]) -> tuple[str, ...]:
        """Start patching uint8 [H, W, 3] images; return their digests."""
        return tuple(digest for digest, _ in map(self._find, images))

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Images:
        """Return the patches of uint8 [H, W, 3] images, which may differ in size."""
        found = [self._find(image) for image in images]
        patches, grids = zip(*(future.result() for _, future in found), strict=True)
        grid = torch.cat(grids)
        visual = grid.prod(dim=1) // self._processor.merge_size**2
        digests = tuple(digest for digest, _ in found)
        return Images(torch.cat(patches), grid, tuple(visual.tolist()), digests)

    def _find(self, image: NDArray[np.uint8]) -> tuple[str, Future[tuple[Tensor, Tensor]]]:
        # The shape is part of the key: the same bytes in another shape are another image.
        state = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
        state.update(np.ascontiguousarray(image).data)
        digest, size = state.hexdigest(), image.nbytes * _PATCH_BYTES_PER_IMAGE_BYTE
        return digest, self._cache.get(digest, lambda: self._threads.submit(self._patch, image), size)

    def _patch(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        # One at a time: for several images the processor concatenates all patches once more, which takes longer than
        # the patching itself (images of 392 pixels: 11 ms each in a batch of 8, 4 to 5 ms alone).
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
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

            # The size of the patches is an upper bound: one visual token replaces four patches.
            features.append(self._cache.get(digest, make, patches.numel() * patches.element_size()))
        return torch.cat(features)
