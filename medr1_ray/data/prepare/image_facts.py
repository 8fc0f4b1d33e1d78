"""Checks of image files, the slow part of `prepare`: whether a file is usable, and the facts about its image."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1_ray.data.images import IMAGE_FORMATS, MAX_DECODED_BYTES, bytes_per_pixel, read_rgb, too_large
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.rows import refuse_missing_image

MAX_IMAGE_BYTES = 256 * 2**20
TOO_LARGE = f"image takes more than {MAX_DECODED_BYTES >> 20} MiB when it is decoded"


@dataclass(frozen=True)
class ImageFacts:
    """Facts about one image file; `image_hash` and the fields after it are those of the manifest.

    `path` is relative to the dataset's root. `bytes` and `modified_ns` are the file's size and modification time (0 if
    there is no file); they tell whether the facts are still valid.
    """

    path: str
    bytes: int
    modified_ns: int
    image_hash: str | None = None
    perceptual_hash: str | None = None
    width: int | None = None
    height: int | None = None
    left_out: str | None = None
    remark: str | None = None


def check_image(root: Path, path: str) -> ImageFacts:
    """Read the image as training does and return the facts about it. Never raises: `left_out` says what is wrong."""
    full = os.path.join(os.path.abspath(root), path)
    size, modified = stamp(root, path)
    try:
        refuse_missing_image(root, full)
        with warnings.catch_warnings(record=True) as complaints:
            # By default Python shows a warning once for each line of code, and so for the first image only.
            warnings.simplefilter("always")
            odd = _look_at_header(full, size)
            picture = read_rgb(full)
    except RowError as reason:
        return ImageFacts(path, size, modified, left_out=str(reason))
    except ValueError as error:
        return ImageFacts(path, size, modified, left_out="image cannot be decoded", remark=_one_line(error))
    # None for more than one colour; the search stops at the second.
    if picture.getcolors(1):
        odd.append("one colour only")
    odd += dict.fromkeys(_one_line(complaint.message) for complaint in complaints)
    return ImageFacts(
        path,
        size,
        modified,
        image_hash=_pixel_hash(picture),
        perceptual_hash=perceptual_hash(picture),
        width=picture.width,
        height=picture.height,
        remark="; ".join(odd) or None,
    )


def stamp(root: Path, path: str) -> tuple[int, int]:
    """Return a file's size in bytes and its modification time in nanoseconds, or zeros if there is no file."""
    try:
        status = os.stat(root / path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def perceptual_hash(picture: Image.Image) -> str:
    """Return a hash of 64 bits, as 16 hexadecimal digits, that changes little with size, brightness and compression.

    It is pHash (http://phash.org): the image is reduced to 32 x 32 grey pixels, and each bit says whether one of the
    8 x 8 lowest cosine coefficients is above their median.
    """
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32)
    coefficients = (_cosines() @ grey @ _cosines().T).ravel()
    # Without the first coefficient, which is the mean brightness.
    return np.packbits(coefficients > np.median(coefficients[1:])).tobytes().hex()


@cache
def _cosines() -> NDArray[np.float32]:
    """Return the first rows of the discrete cosine transform, float32 [8, 32]."""
    return np.cos(np.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5)).astype(np.float32)


def _pixel_hash(picture: Image.Image) -> str:
    content = hashlib.blake2b(f"{picture.width} {picture.height} ".encode(), digest_size=16)
    content.update(picture.tobytes())
    return content.hexdigest()


def _look_at_header(path: str, size: int) -> list[str]:
    """Return what is unusual about a file; raise RowError if it must not be decoded."""
    if size == 0:
        raise RowError("image file is empty")
    if size > MAX_IMAGE_BYTES:
        raise RowError(f"image file larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    refusal = RowError(TOO_LARGE)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            if too_large(file.width, file.height, bytes_per_pixel(file)):
                raise refusal
            odd = ["several frames, the first is used"] if getattr(file, "is_animated", False) else []
            named = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
            # Pillow calls a JPEG file that holds several pictures MPO.
            if file.format not in (named, "MPO"):
                odd.append(f"a {file.format} file by its content")
            return odd
    except Image.DecompressionBombError:
        raise refusal from None
    except RowError:
        raise
    except Exception as error:  # of many types, as in `read_rgb`
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
