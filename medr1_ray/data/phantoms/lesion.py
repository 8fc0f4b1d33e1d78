"""Position and shape of a lesion; each modality gives it its look."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from medr1_ray.data.phantoms.canvas import Array, Canvas, ramp
from medr1_ray.data.phantoms.facts import PhantomFacts

#: Radii in units of half the image; the diameters are 7, 13 and 21 pixels in an image of 84 pixels.
_RADIUS = {"Mild": 0.083, "Moderate": 0.155, "Severe": 0.25}
_SATELLITES = {"Mild": 0, "Moderate": 2, "Severe": 5}
_DIRECTION = {"Left": (-1, 0), "Right": (1, 0), "Top": (0, -1), "Bottom": (0, 1)}
_RIM = 0.045


@dataclass(frozen=True)
class Lesion:
    """Masks [H, W] in 0..1 of a lesion.

    `core` is the lesion itself, `halo` the lesion with a narrow rim around it, and `shadow` the stripe below it that
    ultrasound does not reach.
    """

    core: Array
    halo: Array
    shadow: Array


def place_lesion(facts: PhantomFacts, canvas: Canvas, rng: np.random.Generator) -> Lesion:
    """Return the masks of the lesion of `facts`: one irregular blob, and more small ones around it for worse grades.

    Without a lesion all masks are empty. Random numbers come only from `rng`, never from the canvas's own generator.
    """
    if facts.grade is None or facts.location is None:
        empty = np.zeros_like(canvas.x)
        return Lesion(core=empty, halo=empty, shadow=empty)
    along, across = float(rng.uniform(0.42, 0.54)), float(rng.uniform(-0.16, 0.16))
    right, down = _DIRECTION[facts.location]
    cx, cy = right * along + down * across, down * along + right * across
    radius = _RADIUS[facts.grade] * float(rng.uniform(0.92, 1.08))
    stretch = float(rng.uniform(0.9, 1.1))
    reach = np.sqrt(((canvas.x - cx) * stretch) ** 2 + ((canvas.y - cy) / stretch) ** 2) - radius
    for _ in range(_SATELLITES[facts.grade]):
        angle, gap = float(rng.uniform(0, 2 * math.pi)), radius + float(rng.uniform(0.09, 0.16))
        dx, dy = canvas.x - (cx + gap * math.cos(angle)), canvas.y - (cy + gap * math.sin(angle))
        reach = np.minimum(reach, np.sqrt(dx**2 + dy**2) - float(rng.uniform(0.035, 0.055)))
    reach = reach + 0.15 * radius * replace(canvas, rng=rng).texture(11)
    below = ramp(radius * 0.8 - np.abs(canvas.x - cx), 0.06) * (canvas.y > cy)
    return Lesion(core=ramp(-reach, 0.05), halo=ramp(_RIM - reach, 0.07), shadow=below)
