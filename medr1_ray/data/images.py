"""Loading of image files of any supported format as square RGB arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medr1_ray.data.readers.views import medical_format

ImageFit = Literal["squash", "pad"]

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded. Pillow warns of a decompression bomb at the same limit."""

IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""Formats that are read, whatever the file extension. For some others (PostScript) Pillow would start a program."""

_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def load_image(path: str | Path, size: int, fit: ImageFit) -> NDArray[np.uint8]:
    """Read an image file with `read_rgb` and return it as uint8 RGB [size, size, 3].

    `squash` resizes both sides (bicubic), as Med-R1 does; `pad` keeps the aspect ratio and centres the image on black.

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
    """Read an image file as 8-bit RGB at its original size.

    Grey images with more than 8 bits are scaled linearly from their own minimum and maximum to 0 and 255 (Pillow
    would clip at 255); a constant one becomes black. Transparency is ignored and the colours are kept, as in Med-R1.
    The EXIF orientation is applied; if there are several frames, the first is read.

    Raises:
        ValueError: if the file is missing, damaged, not an image or not a regular file, or larger than `MAX_PIXELS`.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is not a regular file")  # opening a pipe would wait for a writer
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            # `Image.open` has read only the header so far.
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are more than {MAX_PIXELS}")
            ImageOps.exif_transpose(file, in_place=True)
            picture: Image.Image = file
            if picture.mode in _DEEP_MODES:
                picture = _to_eight_bits(picture)
            elif "transparency" in picture.info:
                # Converting a palette with transparency straight to RGB makes Pillow warn.
                picture = picture.convert("RGBA")
            return picture.convert("RGB")
    except Exception as error:  # on damaged files Pillow's decoders raise exceptions of many types
        scan = medical_format(path)
        remedy = f"write the pictures of {scan} files with medr1_ray.data.prepare" if scan else "replace the file"
        raise ValueError(f"{path}: cannot be read as an image ({error}); {remedy}") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    # A single NaN would make minimum and maximum NaN too.
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
