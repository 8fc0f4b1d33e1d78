"""Painters of ultrasound and OCT: images formed by echoes, with speckle."""

from __future__ import annotations

import numpy as np

from medr1_ray.data.phantoms.canvas import Array, Canvas, blend, ramp
from medr1_ray.data.phantoms.lesion import Lesion

_APEX = -1.15  # the ultrasound fan spreads from this y, above the image


def _sector(tissue: Array, canvas: Canvas, lesion: Lesion) -> Array:
    """Cut tissue to the fan that a probe at the top edge sees; add speckle along the arcs and the lesion."""
    depth = canvas.y - np.float32(_APEX)
    radius = np.sqrt(canvas.x**2 + depth**2)
    half_width = canvas.jitter(0.8, 0.06)
    fan = ramp((half_width * depth - np.abs(canvas.x)) * 0.78, 0.02)
    fan = fan * ramp(radius - 0.3, 0.02) * ramp(canvas.jitter(2.0, 0.03) - radius, 0.02)
    speckle = 0.75 + 0.45 * np.abs(canvas.stretched_texture(56, 30)) + 0.12 * canvas.grain()
    image = tissue * np.clip(speckle, 0.3, 1.8)
    image = blend(image, 0.03, 0.85 * lesion.shadow * (1 - lesion.core))
    image = blend(blend(image, 0.05, lesion.halo), 0.98, lesion.core)
    return image * fan


def ultrasound_liver(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a fan [H, W] of even grey liver with a few black vessels and a bright diaphragm arc below."""
    image = np.float32(0.42) + 0.06 * canvas.texture(5)
    for _ in range(4):
        cx, cy = canvas.rng.uniform(-0.5, 0.5), canvas.rng.uniform(-0.5, 0.4)
        image = blend(
            image,
            0.08,
            canvas.ellipse(cx, cy, canvas.rng.uniform(0.03, 0.06), canvas.rng.uniform(0.06, 0.14)),
        )
    arc = canvas.v - canvas.jitter(0.62, 0.06) + 0.4 * canvas.u**2
    return _sector(
        blend(blend(image, 0.15, ramp(arc, 0.05)), 0.95, ramp(0.035 - np.abs(arc), 0.03)), canvas, lesion
    )


def ultrasound_heart(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a fan [H, W] with the four black chambers of the heart and grey walls between them."""
    image = np.float32(0.5) + 0.08 * canvas.texture(6)
    level = canvas.jitter(0.1, 0.5)
    for side in (-1, 1):
        wide = canvas.jitter(0.23)
        image = blend(image, 0.04, canvas.ellipse(side * 0.29, level - 0.4, wide, canvas.jitter(0.36), 0.06))
        image = blend(
            image,
            0.04,
            canvas.ellipse(side * 0.31, level + 0.32, canvas.jitter(0.26), canvas.jitter(0.25), 0.06),
        )
    return _sector(image, canvas, lesion)


def _scan(layers: Array, canvas: Canvas, lesion: Lesion) -> Array:
    speckle = 1 + 0.28 * canvas.grain()
    image = (layers + 0.03) * np.clip(speckle, 0.2, 2)
    return blend(blend(image, 0.9, lesion.halo), 0.02, lesion.core)


def oct_macula(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a scan [H, W] through the macula: level bright and dark bands with the foveal pit in the middle."""
    u = canvas.u
    width = canvas.jitter(0.22, 0.2)
    pit = np.exp(-((u / width) ** 2))
    depth = (canvas.v + 0.04 * np.sin(2 * u + canvas.rng.uniform(0, 6)) + 0.55) / canvas.jitter(1.1, 0.06)
    # The pit thins the inner layers only: the outer ones run straight below it.
    depth = depth - 0.25 * pit * np.clip(1 - depth, 0, 1) ** 1.5
    places = [-0.03, 0.0, 0.1, 0.16, 0.28, 0.33, 0.44, 0.5, 0.68, 0.71, 0.74, 0.8, 0.83, 0.92, 0.95, 1.3]
    values = [0.02, 0.8, 0.75, 0.4, 0.45, 0.2, 0.2, 0.5, 0.25, 0.6, 0.3, 0.35, 0.95, 0.95, 0.5, 0.12]
    return _scan(np.interp(depth, places, values).astype(np.float32), canvas, lesion)


def oct_cornea(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a scan [H, W] through the cornea: a grey arch with bright edges on black, the iris as two bars below."""
    arch = canvas.jitter(0.75)
    depth = (canvas.v + canvas.jitter(0.62, 0.06) - arch * canvas.u**2) / canvas.jitter(0.42)
    places = [-0.03, 0.0, 0.08, 0.14, 0.2, 0.9, 0.95, 1.0, 1.05]
    values = [0.02, 0.95, 0.9, 0.3, 0.45, 0.4, 0.8, 0.8, 0.03]
    layers = np.interp(depth, places, values).astype(np.float32)
    iris = ramp(0.09 - np.abs(canvas.v - 0.62), 0.04) * ramp(np.abs(canvas.u) - canvas.jitter(0.28), 0.04)
    return _scan(np.maximum(layers, 0.6 * iris), canvas, lesion)
