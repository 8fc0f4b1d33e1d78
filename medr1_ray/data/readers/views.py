"""Paths of DICOM files and NIfTI volumes, which may name one picture of many: `scan.dcm#frame=3`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medr1_ray.data.questions import RowError

MedicalFormat = Literal["DICOM", "NIfTI"]

_SUFFIXES: dict[str, MedicalFormat] = {".dcm": "DICOM", ".dicom": "DICOM", ".ima": "DICOM"}
_SUFFIXES |= {".nii": "NIfTI", ".nii.gz": "NIfTI"}
_OTHER_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".ppm")
_WHOLE = r"\d{1,9}"
_NUMBER = r"-?\d{1,9}(\.\d{1,9})?"
_KEYS = {"frame": _WHOLE, "slice": _WHOLE, "axis": "[012]", "center": _NUMBER, "width": _NUMBER}


@dataclass(frozen=True)
class View:
    """Which picture of a file is meant, and how it is shown.

    Args:
        frame: frame of a DICOM file, or volume of a NIfTI file with a fourth dimension, from 0; None is the first.
        slice: slice of a NIfTI volume along `axis`, from 0; None is the middle one.
        axis: 0 counts slices from left to right, 1 from back to front, 2 from bottom to top (the patient's).
        window: center and width of the values that are shown from black to white; None takes the file's.
    """

    frame: int | None = None
    slice: int | None = None
    axis: int = 2
    window: tuple[float, float] | None = None


def split_view(path: str) -> tuple[str, View]:
    """Split an image path of a row into the file's path and what follows `#`; a path without it is a plain view.

    Raises:
        RowError: if what follows `#` is not a list like `frame=3` or `slice=40,axis=2,center=40,width=400`.
    """
    file, mark, text = path.rpartition("#")
    # A file name may hold a `#` of its own.
    if not mark or not (_format_by_name(file) or re.fullmatch(r"([a-z]+=[-.\d]+,?)+", text)):
        return path, View()
    given: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key in given or not re.fullmatch(_KEYS.get(key, "(?!)"), value):
            raise RowError("what follows # in the image path is not like frame=3 or slice=40,axis=2")
        given[key] = value
    if ("center" in given) != ("width" in given) or float(given.get("width", 1)) <= 0:
        raise RowError("a window in an image path needs center and a width above 0")
    return file, View(
        frame=int(given["frame"]) if "frame" in given else None,
        slice=int(given["slice"]) if "slice" in given else None,
        axis=int(given.get("axis", 2)),
        window=(float(given["center"]), float(given["width"])) if "width" in given else None,
    )


def medical_format(file: str | Path) -> MedicalFormat | None:
    """Tell whether a file is DICOM or NIfTI: by its name, or, without a known suffix, by DICOM's mark in its content.

    DICOM's own file names have no suffix, and exports are often named by an id with dots.
    """
    named = _format_by_name(str(file))
    # Opening a pipe would wait for a writer.
    if named or str(file).lower().endswith(_OTHER_IMAGES) or not os.path.isfile(file):
        return named
    try:
        with open(file, "rb") as content:
            return "DICOM" if content.read(132)[128:] == b"DICM" else None
    except (OSError, ValueError):
        return None


def refuse_view_of_image(file: str | Path, path: str) -> None:
    """Raise RowError where `path` names a frame, slice or window of an ordinary image, of which the first is read.

    `file` is where the file of `path` is; of one that is not there, its name alone tells.
    """
    named = str(file).lower().endswith(_OTHER_IMAGES)
    if split_view(path)[0] != path and (named or os.path.isfile(file)) and medical_format(file) is None:
        raise RowError("image path names a frame, slice or window of a file that is neither DICOM nor NIfTI")


def _format_by_name(file: str) -> MedicalFormat | None:
    return next((name for suffix, name in _SUFFIXES.items() if file.lower().endswith(suffix)), None)
