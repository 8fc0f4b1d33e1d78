"""Painters of X-ray: projections in which bones add up to white."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from medr1_ray.data.phantoms.canvas import Array, Canvas, blend, ramp
from medr1_ray.data.phantoms.lesion import Lesion


def _film(image: Array, canvas: Canvas, lesion: Lesion) -> Array:
    image = image * (1 + 0.12 * canvas.texture(2)) + 0.015 * canvas.grain()
    return blend(blend(image, 0.1, lesion.halo), 1.0, lesion.core)


def xray_chest(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a chest film [H, W]: dark lungs crossed by ribs; bright spine, heart and diaphragm; no black margin."""
    u, v = canvas.u, canvas.v
    image: Array = 0.5 + 0.1 * v + 0.1 * np.abs(u)
    lungs = np.maximum(
        canvas.ellipse(-0.42, 0.0, canvas.jitter(0.33, 0.06), canvas.jitter(0.75, 0.06), 0.12),
        canvas.ellipse(0.42, 0.0, canvas.jitter(0.33, 0.06), canvas.jitter(0.75, 0.06), 0.12),
    )
    image = blend(image, 0.2, lungs)
    slope, count = canvas.jitter(0.5, 0.3), canvas.jitter(5.5)
    phase = np.pi * count * (v - slope * (np.abs(u) - 0.4) ** 2 - 0.25 * np.abs(u))
    ribs = np.clip(np.cos(phase) - 0.45, 0, 0.4) * ramp(0.85 - np.abs(u), 0.1) * ramp(np.abs(u) - 0.1, 0.1)
    image = image + 0.45 * ribs
    image = image + 0.22 * ramp(0.09 - np.abs(u), 0.06) * (1 + 0.25 * np.cos(v * 28))
    image = blend(image, 0.68, canvas.ellipse(canvas.jitter(0.13), 0.3, canvas.jitter(0.28), 0.32, 0.1))
    dome = v - 0.62 - 0.5 * (np.abs(u) - 0.42) ** 2
    image = blend(image, 0.72, ramp(dome, 0.1))
    collar = ramp(0.035 - np.abs(v + 0.72 + 0.2 * np.abs(u)), 0.03) * ramp(np.abs(u) - 0.08, 0.05)
    return _film(image + 0.25 * collar, canvas, lesion)


def xray_hand(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a film [H, W] of a hand with the fingers up: grey flesh and bright bones on black."""
    rng = canvas.rng
    height, width = canvas.x.shape
    flesh, bones = Image.new("L", (width, height)), Image.new("L", (width, height))
    on_flesh, on_bones = ImageDraw.Draw(flesh), ImageDraw.Draw(bones)
    unit = width / 2
    tilt, spread = rng.uniform(-0.1, 0.1), rng.uniform(0.9, 1.1)
    on_flesh.ellipse((*canvas.pixels(-0.55, -0.02), *canvas.pixels(0.55, 0.9)), fill=255)
    on_flesh.rectangle((*canvas.pixels(-0.34, 0.6), *canvas.pixels(0.34, 1.1)), fill=255)
    for base, angle, length in (
        (-0.62, -0.85, 0.75),
        (-0.38, -0.2, 1.05),
        (-0.13, -0.04, 1.17),
        (0.13, 0.1, 1.1),
        (0.38, 0.27, 0.9),
    ):
        angle = angle * spread + tilt
        wrist = (base * 0.45, 0.62)
        tip = (base * 0.9 + np.sin(angle) * length * 0.75, 0.15 - np.cos(angle) * length)
        on_flesh.line((*canvas.pixels(*wrist), *canvas.pixels(*tip)), fill=255, width=round(0.24 * unit))
        on_flesh.ellipse(
            (*canvas.pixels(tip[0] - 0.12, tip[1] - 0.12), *canvas.pixels(tip[0] + 0.12, tip[1] + 0.12)),
            fill=255,
        )
        for start, end in ((0.0, 0.36), (0.41, 0.64), (0.68, 0.83), (0.87, 0.97)):
            ends = [
                canvas.pixels(*(w + t * (p - w) for w, p in zip(wrist, tip, strict=True)))
                for t in (start, end)
            ]
            on_bones.line((*ends[0], *ends[1]), fill=255, width=round(0.1 * unit))
    for cx, cy in ((-0.17, 0.7), (0.0, 0.68), (0.17, 0.7), (-0.1, 0.82), (0.08, 0.82)):
        on_bones.ellipse(
            (*canvas.pixels(cx - 0.075, cy - 0.06), *canvas.pixels(cx + 0.075, cy + 0.06)), fill=255
        )
    for side in (-1, 1):
        on_bones.line(
            (*canvas.pixels(side * 0.14, 0.91), *canvas.pixels(side * 0.14, 1.2)),
            fill=255,
            width=round(0.17 * unit),
        )
    soft = [np.asarray(mask.filter(ImageFilter.BoxBlur(1)), np.float32) / 255 for mask in (flesh, bones)]
    return _film(0.04 + 0.26 * soft[0] + 0.5 * soft[1] * (1 + 0.1 * canvas.texture(12)), canvas, lesion)
