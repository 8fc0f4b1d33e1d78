"""Loading of image files of any supported format as square RGB arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageMode, ImageOps, TiffImagePlugin
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from medr1_ray.data.readers.views import medical_format

ImageFit = Literal["squash", "pad"]

MAX_DECODED_BYTES = 3 * 8192**2
"""Images that take more are refused before they are decoded, by their headers: a file of 200 kB may hold gigabytes."""

IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""Formats that are read, whatever the file extension. For some others (PostScript) Pillow would start a program."""

_BAND_VALUES = 2**20
_WHITE_IS_ZERO = 0
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
    would clip at 255), those of TIFF files whose 0 is white from maximum to minimum; a constant one becomes black.
    Transparency is ignored and the colours are kept, as in Med-R1.
    The EXIF orientation is applied; if there are several frames, the first is read.

    Raises:
        ValueError: if the file is missing, damaged, not an image or not a regular file, or takes more than
            `MAX_DECODED_BYTES`.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is not a regular file")  # opening a pipe would wait for a writer
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            # `Image.open` has read only the header so far.
            if problem := too_large(file.width, file.height, bytes_per_pixel(file)):
                raise ValueError(problem)
            ImageOps.exif_transpose(file, in_place=True)
            picture: Image.Image = file
            if picture.mode in _DEEP_MODES:
                picture = _to_eight_bits(*_deep_values(picture))
            elif "transparency" in picture.info:
                # Converting a palette with transparency straight to RGB makes Pillow warn.
                picture = picture.convert("RGBA")
            # Converting RGB to RGB would make a copy.
            picture.load()
            return picture if picture.mode == "RGB" else picture.convert("RGB")
    except Exception as error:  # on damaged files Pillow's decoders raise exceptions of many types
        scan = medical_format(path)
        remedy = f"write the pictures of {scan} files with medr1_ray.data.prepare" if scan else "replace the file"
        raise ValueError(f"{path}: cannot be read as an image ({error}); {remedy}") from error


def bytes_per_pixel(image: Image.Image) -> int:
    """Return the bytes that a pixel of an image takes when it is decoded, by its header."""
    mode = ImageMode.getmode(image.mode)
    return len(mode.bands) * np.dtype(mode.typestr).itemsize


def too_large(width: int, height: int, pixel_bytes: int) -> str | None:
    """Return what is wrong with an image of this size; None if it may be decoded."""
    # All pictures become 8-bit RGB.
    if width * height * max(pixel_bytes, 3) <= MAX_DECODED_BYTES:
        return None
    return f"{width} x {height} pixels take more than {MAX_DECODED_BYTES >> 20} MiB when they are decoded"


def _deep_values(image: Image.Image) -> tuple[NDArray[Any], bool]:
    """Return the values of a grey image of more than 8 bits, and whether its lowest value is white."""
    values = np.asarray(image)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return values, False
    # Of such TIFF files Pillow passes both over.
    unsigned, tags = 1, image.tag_v2
    if image.mode == "I" and tags.get(SAMPLEFORMAT, (unsigned,))[0] == unsigned:
        values = values.view(np.uint32)
    return values, tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO


def _to_eight_bits(values: NDArray[Any], inverted: bool) -> Image.Image:
    shown = np.zeros(values.shape, np.uint8)
    # Band by band: the whole image in float64 would take four times the memory, and several copies of it.
    count = max(1, min(len(values), values.size // _BAND_VALUES))
    bands, targets = np.array_split(values, count), np.array_split(shown, count)
    low = min(float(_finite(band).min()) for band in bands)
    high = max(float(_finite(band).max()) for band in bands)
    if high > low:
        black, white = (high, low) if inverted else (low, high)
        for band, target in zip(bands, targets, strict=True):
            target[:] = np.rint((_finite(band) - black) * (255 / (white - black)))
    return Image.fromarray(shown)


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    # A single NaN would make minimum and maximum NaN too.
    return np.nan_to_num(values.astype(np.float64))
