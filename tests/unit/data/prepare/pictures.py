"""Pictures of a few large blots."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 128) -> Image.Image:
    """Return a picture of a few large blots."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
