"""Painters of fundus photography, dermoscopy and microscopy: colour images, [3, H, W] while they are drawn."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from medr1_ray.data.phantoms.canvas import Array, Canvas, plain, ramp, tint
from medr1_ray.data.phantoms.lesion import Lesion

_VESSEL = (0.5, 0.08, 0.03)
_SKIN = (0.87, 0.64, 0.53)


def _retina(canvas: Canvas) -> Array:
    glow = 1 - 0.25 * (canvas.x**2 + canvas.y**2) + 0.06 * canvas.texture(6)
    hue = (canvas.jitter(0.86, 0.05), canvas.jitter(0.4, 0.12), canvas.jitter(0.12, 0.3))
    return plain(canvas, hue) * glow


def _vessels(canvas: Canvas, image: Array, paths: list[tuple[list[tuple[float, float]], float]]) -> Array:
    """Draw blood vessels, each given as a path in image coordinates and a width in units of half the image width."""
    height, width = canvas.x.shape
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    for path, thickness in paths:
        pen.line(
            [canvas.pixels(*point) for point in path],
            fill=255,
            width=max(1, round(thickness * width / 2)),
            joint="curve",
        )
    return tint(image, _VESSEL, np.asarray(mask.filter(ImageFilter.BoxBlur(0.6)), np.float32) / 255 * 0.85)


def _eyepiece(image: Array, canvas: Canvas, lesion: Lesion) -> Array:
    image = tint(tint(image, (0.45, 0.12, 0.04), lesion.halo), (1.0, 0.95, 0.6), lesion.core)
    opening = ramp(canvas.jitter(0.95, 0.03) - np.sqrt(canvas.x**2 + canvas.y**2), 0.03)
    return image * opening + 0.01 * canvas.grain()


def fundus_macula(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a photograph [3, H, W] centred on the macula: a dark spot between two arching vessels, no disc."""
    rng = canvas.rng
    image = tint(
        _retina(canvas),
        (0.36, 0.1, 0.04),
        canvas.ellipse(0, 0, canvas.jitter(0.22), canvas.jitter(0.22), 0.25),
    )
    nose, t = (1 if rng.integers(2) else -1), np.linspace(0, 1, 9)
    paths: list[tuple[list[tuple[float, float]], float]] = []
    for up in (-1, 1):
        bow = rng.uniform(0.5, 0.6)
        arcade = [
            (nose * (1 - 1.8 * s), up * (0.1 + bow * float(np.sin(np.pi * (0.15 + 0.65 * s))))) for s in t
        ]
        paths.append((arcade, 0.055))
        for k in (2, 4, 6):
            x, y = arcade[k]
            out, twist = rng.uniform(0.2, 0.4), rng.uniform(-0.1, 0.2)
            paths.append(
                (
                    [(x, y), (x - nose * 0.15, y + up * out * 0.4), (x - nose * (0.3 + twist), y + up * out)],
                    0.03,
                )
            )
            paths.append(([(x, y), (x - nose * 0.08, y - up * 0.12), (x - nose * 0.2, y - up * 0.2)], 0.02))
    return _eyepiece(_vessels(canvas, image, paths), canvas, lesion)


def fundus_disc(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a photograph [3, H, W] centred on the optic disc: a bright disc from which all vessels spread."""
    rng = canvas.rng
    radius = canvas.jitter(0.21)
    image = tint(_retina(canvas), (0.98, 0.82, 0.45), canvas.ellipse(0, 0, radius * 0.9, radius))
    image = tint(image, (1.0, 0.95, 0.75), canvas.ellipse(0, 0, radius * 0.4, radius * 0.5))
    paths: list[tuple[list[tuple[float, float]], float]] = []
    for k in range(8):
        angle, bend = 2 * np.pi * k / 8 + rng.uniform(-0.25, 0.25), rng.uniform(-0.6, 0.6)
        t = np.linspace(0, 1, 7)
        paths.append(
            (
                [(float(s * np.cos(angle + bend * s)), float(s * np.sin(angle + bend * s))) for s in t],
                rng.uniform(0.03, 0.06),
            )
        )
    return _eyepiece(_vessels(canvas, image, paths), canvas, lesion)


def _skin(canvas: Canvas) -> Array:
    shade: Array = (
        1 - 0.08 * (canvas.x**2 + canvas.y**2) + 0.04 * canvas.texture(5) + 0.02 * canvas.texture(40)
    )
    return plain(canvas, _SKIN) * (canvas.jitter(0.95, 0.12) * shade)


def _pigment(image: Array, canvas: Canvas, lesion: Lesion) -> Array:
    image = tint(image, (0.62, 0.36, 0.22), 0.7 * lesion.halo)
    network = np.cos(38 * canvas.u) * np.cos(38 * canvas.v)
    image = tint(image, (0.26, 0.12, 0.08), lesion.core)
    return tint(image, (0.45, 0.24, 0.14), lesion.core * ramp(network - 0.5, 0.3))


def dermoscopy_scalp(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a close-up [3, H, W] of skin crossed by many long dark hairs."""
    rng = canvas.rng
    image = _pigment(_skin(canvas), canvas, lesion)
    height, width = canvas.x.shape
    hairs = Image.new("L", (width, height))
    pen = ImageDraw.Draw(hairs)
    direction = rng.uniform(0, np.pi)
    for _ in range(int(rng.integers(14, 22))):
        x, y, angle = rng.uniform(-0.95, 0.95), rng.uniform(-0.95, 0.95), direction + rng.normal(0, 0.35)
        bend, length = rng.uniform(-0.25, 0.25), rng.uniform(0.5, 0.9)
        path = [
            canvas.pixels(
                x + s * length * np.cos(angle + bend * s), y + s * length * np.sin(angle + bend * s)
            )
            for s in (-1.0, -0.5, 0.0, 0.5, 1.0)
        ]
        pen.line(path, fill=int(rng.integers(170, 255)), width=max(1, round(width / 90)))
    return tint(image, (0.16, 0.11, 0.1), np.asarray(hairs, np.float32) / 255 * 0.8)


def dermoscopy_sole(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a close-up [3, H, W] of ridged skin: parallel light and dark stripes, dotted with pores."""
    angle = canvas.rng.uniform(0, np.pi)
    cos, sin, turns = math.cos(angle), math.sin(angle), canvas.jitter(26, 0.15)
    stripes = np.cos(turns * (canvas.u * cos + canvas.v * sin + 0.05 * canvas.texture(4)))
    image = tint(_skin(canvas), (0.66, 0.4, 0.3), ramp(stripes - 0.2, 0.9) * 0.8)
    pores = ramp(-stripes - 0.75, 0.2) * ramp(np.cos(turns * (canvas.v * cos - canvas.u * sin)) - 0.7, 0.2)
    return _pigment(tint(image, (1.0, 0.92, 0.86), pores), canvas, lesion)


def _nuclei(image: Array, canvas: Canvas, lesion: Lesion) -> Array:
    """Crowd the lesion with dark purple nuclei."""
    crowd = np.cos(44 * canvas.u + 3 * canvas.texture(6)) * np.cos(44 * canvas.v)
    image = tint(image, (0.55, 0.3, 0.62), 0.6 * lesion.halo)
    image = tint(image, (0.17, 0.04, 0.36), lesion.core)
    return tint(image, (0.42, 0.2, 0.6), lesion.core * ramp(np.abs(crowd) - 0.55, 0.3))


def microscopy_blood(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a smear [3, H, W]: round red cells with pale centres on a near-white background."""
    rng = canvas.rng
    height, width = canvas.x.shape
    smear = Image.new("RGB", (width, height), (245, 232, 232))
    pen = ImageDraw.Draw(smear)
    step = rng.uniform(0.25, 0.3)
    places = np.mgrid[-1:1.1:step, -1:1.1:step].reshape(2, -1)
    places = places[:, rng.random(places.shape[1]) > 0.15]
    places = places + rng.uniform(-0.06, 0.06, places.shape)
    for (x, y), radius in zip(
        places.T.tolist(), rng.uniform(0.09, 0.12, places.shape[1]).tolist(), strict=True
    ):
        for r, colour in ((radius, (214, 120, 128)), (0.45 * radius, (236, 180, 182))):
            pen.ellipse((*canvas.pixels(x - r, y - r), *canvas.pixels(x + r, y + r)), fill=colour)
    image = np.asarray(smear.filter(ImageFilter.BoxBlur(0.7)), np.float32).transpose(2, 0, 1) / 255
    return _nuclei(image + 0.012 * canvas.grain(), canvas, lesion)


def microscopy_prostate(canvas: Canvas, lesion: Lesion) -> Array:
    """Paint a stained section [3, H, W]: pink tissue with white glands, each in a ring of purple nuclei."""
    rng = canvas.rng
    image = plain(canvas, (0.9, 0.62, 0.76)) * (1 + 0.06 * canvas.texture(16))
    image = tint(image, (0.55, 0.3, 0.62), ramp(canvas.texture(36) - 1.1, 0.3))
    reach = np.full_like(canvas.x, 9.0)
    corners = [(x, y) for x in (-0.7, 0.0, 0.7) for y in (-0.7, 0.0, 0.7)]
    for cx, cy in corners:
        x, y = cx + rng.uniform(-0.14, 0.14), cy + rng.uniform(-0.14, 0.14)
        rx, ry = rng.uniform(0.13, 0.24), rng.uniform(0.13, 0.24)
        reach = np.minimum(
            reach, (np.sqrt(((canvas.u - x) / rx) ** 2 + ((canvas.v - y) / ry) ** 2) - 1) * min(rx, ry)
        )
    reach = reach + 0.02 * canvas.texture(14)
    dots = 0.5 + 0.5 * ramp(canvas.texture(40), 0.6)
    image = tint(image, (0.62, 0.36, 0.7), ramp(0.05 - np.abs(reach - 0.02), 0.03) * dots)
    image = tint(image, (0.97, 0.94, 0.96), ramp(-reach - 0.015, 0.03))
    return _nuclei(image + 0.012 * canvas.grain(), canvas, lesion)
