"""Painters of CT and MRI: grey slices on black."""

from __future__ import annotations

import numpy as np

from medr1_ray.data.phantoms.canvas import Array, Canvas, blend, ramp
from medr1_ray.data.phantoms.lesion import Lesion


def _ring_radius(canvas: Canvas, rx: float, ry: float) -> Array:
    return np.sqrt((canvas.u / rx) ** 2 + (canvas.v / ry) ** 2)


def _ct(organs: Array, canvas: Canvas, lesion: Lesion) -> Array:
    image = organs + 0.02 * canvas.grain() * (organs > 0.08) + 0.015 * canvas.texture(24)
    return blend(blend(image, 0.12, lesion.halo), 0.98, lesion.core)


def ct_chest(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a slice [H, W] of the chest: two black lungs, a bright ring of ribs, the spine below."""
    rx, ry = canvas.jitter(0.9, 0.05), canvas.jitter(0.8, 0.06)
    radius = _ring_radius(canvas, rx, ry)
    image = blend(np.full_like(canvas.x, 0.01), 0.42, ramp(1 - radius, 0.04))
    ribs = ramp(0.035 - np.abs(radius - 0.86), 0.02) * ramp(canvas.texture(9) + 0.35, 0.3)
    width, height = canvas.jitter(0.29), canvas.jitter(0.55)
    for side in (-1, 1):
        lung = canvas.ellipse(side * canvas.jitter(0.41, 0.05), 0.0, width, height)
        vessels = np.clip(canvas.texture(16) - 0.9, 0, 0.25)
        image = blend(image, 0.09 + vessels, lung)
    image = blend(
        image, 0.55, canvas.ellipse(canvas.jitter(0.08), -0.15, canvas.jitter(0.2), canvas.jitter(0.27))
    )
    image = blend(image, 0.9, np.maximum(ribs, canvas.ellipse(0, 0.66, 0.12, 0.1)))
    return _ct(blend(image, 0.3, canvas.ellipse(0, 0.68, 0.035, 0.035)), canvas, lesion)


def ct_abdomen(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a slice [H, W] of the abdomen: liver on the left, kidneys, bowel, a rim of fat, the spine below."""
    rx, ry = canvas.jitter(0.9, 0.05), canvas.jitter(0.8, 0.06)
    radius = _ring_radius(canvas, rx, ry)
    image = blend(np.full_like(canvas.x, 0.01), 0.27, ramp(1 - radius, 0.04))
    image = blend(image, 0.45, ramp(0.05 - np.abs(radius - 0.84), 0.03))
    ribs = ramp(0.03 - np.abs(radius - 0.84), 0.02) * ramp(canvas.texture(9) - 0.3, 0.3)
    image = blend(image, 0.38, ramp(0.78 - radius, 0.04))
    image = blend(
        image, 0.6, canvas.ellipse(canvas.jitter(-0.36), -0.12, canvas.jitter(0.35), canvas.jitter(0.42))
    )
    image = blend(image, 0.55, canvas.ellipse(canvas.jitter(0.46), -0.1, 0.2, canvas.jitter(0.24)))
    for side in (-1, 1):
        image = blend(
            image, 0.72, canvas.ellipse(side * canvas.jitter(0.36), 0.36, 0.12, canvas.jitter(0.17))
        )
    for cx, cy in ((0.12, -0.42), (0.22, -0.2), (0.0, -0.1)):
        image = blend(image, 0.5, canvas.ellipse(canvas.jitter(cx), canvas.jitter(cy), 0.1, 0.08))
    image = blend(image, 0.75, canvas.ellipse(0.03, 0.36, 0.06, 0.06))
    image = blend(image, 0.9, np.maximum(ribs, canvas.ellipse(0, 0.62, 0.13, 0.1)))
    return _ct(blend(image, 0.3, canvas.ellipse(0, 0.65, 0.035, 0.035)), canvas, lesion)


def _mri(tissue: Array, canvas: Canvas, lesion: Lesion) -> Array:
    # Slow shading, which the uneven sensitivity of the coil causes in MRI.
    image = tissue * (1 + 0.1 * canvas.texture(3)) + 0.015 * canvas.grain()
    return blend(blend(image, 0.95, lesion.halo), 0.03, lesion.core)


def mri_brain(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint an axial slice [H, W] of the brain: bright scalp, dark skull, folded cortex, bright ventricles."""
    rx, ry = canvas.jitter(0.76, 0.06), canvas.jitter(0.9, 0.04)
    radius = _ring_radius(canvas, rx, ry) + 0.01 * canvas.texture(6)
    image = blend(np.zeros_like(canvas.x), 0.8, ramp(1 - radius, 0.03))
    image = blend(image, 0.05, ramp(0.93 - radius, 0.03))
    sulci = ramp(0.18 - np.abs(canvas.texture(14)), 0.25) * ramp(radius - 0.55, 0.2)
    brain = blend(np.full_like(canvas.x, 0.42), 0.56, ramp(0.66 - radius + 0.05 * canvas.texture(12), 0.1))
    image = blend(image, blend(brain, 0.8, sulci), ramp(0.86 - radius, 0.03))
    image = blend(image, 0.75, ramp(0.012 - np.abs(canvas.u), 0.02) * ramp(0.84 - radius, 0.03))
    spread, reach = canvas.jitter(0.1, 0.2), canvas.jitter(0.2, 0.15)
    for side in (-1, 1):
        image = blend(image, 0.95, canvas.ellipse(side * spread, -0.1, 0.055, reach))
        image = blend(image, 0.95, canvas.ellipse(side * spread * 1.4, 0.17, 0.055, 0.1))
    return _mri(image, canvas, lesion)


def mri_knee(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a sagittal slice [H, W] of the knee: bright femur above, tibia below, patella and tendons in front."""
    leg = ramp(canvas.jitter(0.86, 0.04) - np.abs(canvas.u + 0.08 * canvas.v), 0.05)
    image = blend(np.zeros_like(canvas.x), 0.82, leg)
    muscle = 0.28 + 0.05 * canvas.stretched_texture(4, 16)
    image = blend(image, muscle, ramp(0.68 - np.abs(canvas.u + 0.08 * canvas.v), 0.06))
    shaft, gap = canvas.jitter(0.3), canvas.jitter(0.06, 0.2)
    femur = np.maximum(
        canvas.ellipse(0, -gap - 0.3, 0.46, 0.32), ramp(shaft - np.abs(canvas.u), 0.05) * (canvas.v < -0.3)
    )
    tibia = np.maximum(
        canvas.ellipse(0, gap + 0.26, 0.45, 0.22), ramp(shaft - np.abs(canvas.u), 0.05) * (canvas.v > 0.3)
    )
    bones = np.maximum(femur, tibia)
    image = blend(image, 0.06, ramp(bones - 0.02, 0.04) * (bones < 1))
    image = blend(image, 0.68 + 0.05 * canvas.texture(18), bones**3)
    patella = canvas.ellipse(-0.6, canvas.jitter(-0.32), 0.1, 0.19)
    image = blend(image, 0.06, canvas.ellipse(-0.6, -0.3, 0.15, 0.5) * (1 - patella))
    return _mri(blend(image, 0.7, patella), canvas, lesion)
