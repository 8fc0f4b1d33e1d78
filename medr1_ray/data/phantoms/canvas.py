"""The pixel grid on which a phantom is drawn, and the brushes shared by all modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Canvas:
    """Coordinates of every pixel, [H, W] each, from -1 (left, top) to 1 (right, bottom) across the image.

    `x` and `y` are image coordinates; `u` and `v` are those of the anatomy, which is slightly shifted, scaled and
    rotated within the image.
    """

    x: Array
    y: Array
    u: Array
    v: Array
    rng: np.random.Generator

    def texture(self, cells: int) -> Array:
        """Return smooth noise [H, W], mean 0, standard deviation about 0.7, of `cells` x `cells` independent values."""
        return self.stretched_texture(cells, cells)

    def stretched_texture(self, rows: int, columns: int) -> Array:
        """Return smooth noise [H, W] as in `texture`, of `rows` x `columns` independent values."""
        grid = self.rng.standard_normal((rows, columns), dtype=np.float32)
        height, width = self.x.shape
        return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))

    def grain(self) -> Array:
        """Return noise [H, W] of mean 0 and standard deviation 1 that is independent from pixel to pixel."""
        return self.rng.standard_normal(self.x.shape, dtype=np.float32)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, soft: float = 0.05) -> Array:
        """Return a mask [H, W] in 0..1 of a filled ellipse in anatomy coordinates with an edge `soft` wide."""
        distance = np.sqrt(((self.u - cx) / rx) ** 2 + ((self.v - cy) / ry) ** 2)
        return ramp((1 - distance) * min(rx, ry), soft)

    def pixels(self, cx: float, cy: float) -> tuple[float, float]:
        """Return the pixel (column, row) of a point in image coordinates, as PIL's drawing functions take it."""
        height, width = self.x.shape
        return (cx + 1) / 2 * width, (cy + 1) / 2 * height

    def jitter(self, value: float, by: float = 0.1) -> float:
        """Return `value` changed at random by at most the fraction `by` of itself."""
        return value * float(self.rng.uniform(1 - by, 1 + by))


def new_canvas(rng: np.random.Generator, size: int) -> Canvas:
    """Return a canvas with one side of `size` pixels and the other up to 20 % shorter."""
    short = round(size * float(rng.uniform(0.8, 1)))
    height, width = (size, short) if rng.integers(2) else (short, size)
    y, x = np.meshgrid(_centres(height), _centres(width), indexing="ij")
    angle, scale = rng.uniform(-0.12, 0.12), rng.uniform(0.95, 1.08)
    dx, dy = x - np.float32(rng.uniform(-0.05, 0.05)), y - np.float32(rng.uniform(-0.05, 0.05))
    cos, sin = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    return Canvas(x=x, y=y, u=cos * dx + sin * dy, v=cos * dy - sin * dx, rng=rng)


def _centres(pixels: int) -> Array:
    return ((np.arange(pixels, dtype=np.float32) + 0.5) / pixels * 2 - 1).astype(np.float32)


def ramp(distance: Array, soft: float) -> Array:
    """Return a mask in 0..1: 1 where `distance` is above soft / 2, 0 below -soft / 2, linear in between."""
    return np.clip(distance / np.float32(soft) + np.float32(0.5), 0, 1)


def blend(base: Array, value: float | Array, mask: Array) -> Array:
    """Return `base`, replaced by `value` where `mask` is 1 and mixed with it where the mask is between 0 and 1."""
    return base + mask * (value - base)


def tint(base: Array, colour: tuple[float, float, float], mask: Array) -> Array:
    """Blend a colour into an image [3, H, W] by a mask [H, W], as `blend` does."""
    return base + mask * (np.array(colour, np.float32)[:, None, None] - base)


def plain(canvas: Canvas, colour: tuple[float, float, float]) -> Array:
    """Return a colour image [3, H, W] of one colour."""
    # Channels come first because NumPy is slow over an innermost axis of length three.
    return np.broadcast_to(np.array(colour, np.float32)[:, None, None], (3, *canvas.x.shape))
