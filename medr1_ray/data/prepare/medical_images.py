"""Pictures from DICOM files and NIfTI volumes: one frame or slice becomes an 8-bit image.

pydicom and nibabel are an extra (`medical`) and are imported where they are used.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1_ray.data.prepare.medical_sizes import (
    refuse_deflated_bomb,
    refuse_large_dicom,
    refuse_large_nifti,
    refuse_nifti_bomb,
)
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.views import MedicalFormat, View

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PACKAGES: dict[MedicalFormat, str] = {"DICOM": "pydicom", "NIfTI": "nibabel"}


def refuse_missing_package(kind: MedicalFormat, example: str | Path) -> None:
    """Raise ValueError if the package that reads files like `example` is not installed."""
    if find_spec(_PACKAGES[kind]) is None:
        raise ValueError(
            f"{example}: {kind} files are read with {_PACKAGES[kind]}, which is not installed; "
            "pip install 'medr1_ray[medical]'"
        )


def read_medical_image(path: str | Path, kind: MedicalFormat, view: View) -> tuple[Image.Image, list[str]]:
    """Return one picture of a DICOM or NIfTI file, 8-bit grey or RGB at its stored size, and what is unusual about it.

    Raises:
        RowError: if the file is sound, but the picture that is asked for is not in it or cannot be shown.
        ValueError: if the file is damaged or of another format; the message has the details.
    """
    try:
        with warnings.catch_warnings():
            # About header fields that break a rule without a meaning for the picture, and not alike for any two files.
            warnings.simplefilter("ignore")
            return (_read_dicom if kind == "DICOM" else _read_nifti)(Path(path), view)
    except RowError:
        raise
    except Exception as error:  # both libraries raise exceptions of many types on damaged files
        raise ValueError(f"{path}: cannot be read as {kind} ({type(error).__name__}: {error})") from error


def _read_dicom(path: Path, view: View) -> tuple[Image.Image, list[str]]:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, pixel_array

    if view.slice is not None or view.axis != View.axis:
        raise RowError("a slice or axis is named of a DICOM file; name a frame")
    refuse_deflated_bomb(path)
    dataset = dcmread(path)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise RowError("DICOM file holds no picture")
    _refuse_missing_decoder(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if (view.frame or 0) >= frames:
        raise RowError("DICOM file has no such frame; frames are counted from 0")
    refuse_large_dicom(dataset)
    frame = view.frame or 0
    # Also converts YBR to RGB.
    pixels = pixel_array(dataset, index=frame)
    remarks = ["several frames, the first is used"] if frames > 1 and view.frame is None else []
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        return Image.fromarray(_high_bits(pixels, pixels.dtype.itemsize * 8)), remarks
    if pixels.ndim == 3:
        return Image.fromarray(_high_bits(pixels, dataset.BitsStored)), remarks
    return Image.fromarray(_grey_of_dicom(pixels, dataset, frame, view)), remarks


def _refuse_missing_decoder(dataset: Dataset) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        missing = not get_decoder(syntax).is_available
    except NotImplementedError:
        # An id that is not in the standard is its own name.
        name = "something unknown" if syntax.name == syntax else syntax.name
        raise RowError(f"DICOM file is encoded as {name}, which pydicom does not decode") from None
    if missing:
        raise RowError(
            f"no decoder for DICOM encoded as {syntax.name}; pip install pylibjpeg pylibjpeg-libjpeg "
            "pylibjpeg-openjpeg and prepare again"
        )


def _grey_of_dicom(pixels: NDArray[Any], dataset: Dataset, frame: int, view: View) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    _take_values_of_frame(dataset, frame)
    if view.window:
        # The file's own table would come before the window, and its function need not be linear.
        for name in ("VOILUTSequence", "VOILUTFunction"):
            if name in dataset:
                delattr(dataset, name)
        dataset.WindowCenter, dataset.WindowWidth = view.window
    values = apply_modality_lut(pixels, dataset)
    if dataset.get("VOILUTSequence"):
        lut = dataset.VOILUTSequence[0]
        entries, first, bits = lut.LUTDescriptor
        # pydicom counts the entries in the type of their values: of 8 bits, it would find but 256.
        lut.LUTDescriptor = [entries, first, max(bits, 16)]
        values = np.rint(values).astype(np.int64)
        shown = apply_voi_lut(values, dataset)
        ends = apply_voi_lut(np.arange(entries or 2**16) + first, dataset)
    elif all(name in dataset and dataset[name].VM for name in ("WindowCenter", "WindowWidth")):
        shown = apply_voi_lut(values, dataset)
        # pydicom maps a window to the range of all values that could be stored: what it makes of values far outside.
        with np.errstate(over="ignore"):
            ends = apply_voi_lut(np.array([-1e30, 1e30]), dataset)
    elif dataset.get("BitsStored", 16) <= 8 and not dataset.PixelRepresentation:
        shown, ends = values, apply_modality_lut(np.array([0, 2**dataset.BitsStored - 1]), dataset)
    else:
        shown = ends = values
    grey = _to_eight_bits(shown, float(ends.min()), float(ends.max()))
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _take_values_of_frame(dataset: Dataset, frame: int) -> None:
    """Copy the rescaling and window of an enhanced multi-frame file, kept by frame, to where pydicom looks."""
    shared, each = (dataset.get(f"{which}FunctionalGroupsSequence") or [] for which in ("Shared", "PerFrame"))
    for group in [*shared[:1], *each[frame : frame + 1]]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name) or []:
                dataset.update(item)


def _read_nifti(path: Path, view: View) -> tuple[Image.Image, list[str]]:
    import nibabel
    from nibabel.imageglobals import logger

    # Like the warnings, but printed: what it corrects in a header.
    logger.setLevel("CRITICAL")
    refuse_nifti_bomb(path)
    file = nibabel.load(path)
    shape = file.shape
    if len(shape) not in (3, 4) or 0 in shape:
        raise RowError("NIfTI file is not a volume of three dimensions, or several")
    volumes = shape[3] if len(shape) == 4 else 1
    if (view.frame or 0) >= volumes:
        raise RowError("NIfTI file has no such frame; volumes are counted from 0")
    # For each stored axis: the patient's axis that it runs along, and 1 or -1.
    directions = nibabel.io_orientation(file.affine)
    if np.isnan(directions).any():
        raise RowError("NIfTI file does not say how the volume lies")
    along = int(np.flatnonzero(directions[:, 0] == view.axis)[0])
    length = shape[along]
    index = length // 2 if view.slice is None else view.slice
    if index >= length:
        raise RowError("NIfTI file has no such slice along this axis; slices are counted from 0")
    refuse_large_nifti(file, view.frame or 0, along)
    stored = index if directions[along, 1] > 0 else length - 1 - index
    part: list[slice | int] = [slice(None)] * 3
    part[along] = slice(stored, stored + 1)
    if len(shape) == 4:
        part.append(view.frame or 0)
    # Reads this slice alone.
    slab = nibabel.as_closest_canonical(file.slicer[tuple(part)])
    values = np.asarray(slab.dataobj).take(0, axis=view.axis)
    if values.dtype.kind not in "biuf":
        raise RowError("NIfTI file holds colours or complex numbers")
    # As radiologists look at it: head or face up, the patient's right on the left, seen from the side facing left.
    values = values[::-1, ::-1].T
    if view.window:
        center, width = view.window
        ends = center - width / 2, center + width / 2
    else:
        ends = float(file.header["cal_min"]), float(file.header["cal_max"])
    if not ends[0] < ends[1]:  # most writers leave both at 0
        values = np.nan_to_num(values.astype(np.float64))
        ends = float(values.min()), float(values.max())
    remarks = ["no slice is named, the middle one is used"] if view.slice is None else []
    if volumes > 1 and view.frame is None:
        remarks.append("several frames, the first is used")
    return Image.fromarray(_to_eight_bits(values, *ends)), remarks


def _high_bits(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return (pixels >> max(0, bits - 8)).astype(np.uint8)


def _to_eight_bits(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    if not black < white:
        return np.zeros(values.shape, np.uint8)
    fractions = (np.nan_to_num(values.astype(np.float64)) - black) / (white - black)
    return np.rint(np.clip(fractions, 0, 1) * 255).astype(np.uint8)
