"""Image files of any kind as square RGB arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

ImageFit = Literal["squash", "pad"]

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own limit for its warning)."""

IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""What is read, whatever a file's ending; for some others (PostScript) Pillow would start a program."""

_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def load_image(path: str | Path, size: int, fit: ImageFit) -> NDArray[np.uint8]:
    """Read an image file, as `read_rgb` does, as uint8 RGB [size, size, 3].

    `squash` resizes both sides (bicubic), as Med-R1 does; `pad` keeps the aspect ratio, centred on black.

    Raises:
        ValueError: as `read_rgb`.
    """
    picture = read_rgb(path)
    if fit == "squash":
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    else:
        picture = ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC)
    return np.array(picture)


def read_rgb(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB in its own size.

    Grey images with more than 8 bits are scaled linearly from their own darkest and brightest value to 0 and
    255 (Pillow would clip at 255); a constant one is black. Of transparent images the colours are taken and
    the transparency is left out, as in Med-R1. The EXIF orientation is applied; of several frames the first
    is read.

    Raises:
        ValueError: if the file is missing, damaged, no image, or larger than `MAX_PIXELS`.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are more than {MAX_PIXELS}")
            ImageOps.exif_transpose(file, in_place=True)
            picture: Image.Image = file
            if picture.mode in _DEEP_MODES:
                picture = _to_eight_bits(picture)
            elif "transparency" in picture.info:
                # Straight to RGB, Pillow warns about palettes with transparency.
                picture = picture.convert("RGBA")
            return picture.convert("RGB")
    except Exception as error:  # of damaged files Pillow raises whatever its decoders stumble over
        raise ValueError(f"{path}: cannot be read as an image ({error}); replace the file") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
