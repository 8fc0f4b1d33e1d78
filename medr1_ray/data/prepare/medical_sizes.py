"""Refusals of DICOM and NIfTI files that would take too much memory or time, by their headers, before they are read.

A kilobyte of a compressed file may stand for a megabyte, and both libraries read as much as a header's numbers say.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr1_ray.data.images import too_large
from medr1_ray.data.prepare.image_facts import TOO_LARGE
from medr1_ray.data.questions import RowError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_VOLUME_BYTES = 2 * 2**30
"""Memory of one volume: a slice along the first axis is read with all others. 4,096 CT slices of 512 x 512."""
MAX_READ_BYTES = 8 * 2**30
"""Bytes up to the end of the volume that is read: a compressed file is unpacked from its beginning."""
_MAX_HEADER_BYTES = 16 * 2**20
_CHUNK = 2**20


def refuse_large_dicom(dataset: Dataset) -> None:
    """Raise RowError if a frame is too large to be decoded."""
    values = int(dataset.get("SamplesPerPixel") or 1) * math.ceil(int(dataset.get("BitsAllocated") or 8) / 8)
    if too_large(dataset.Rows, dataset.Columns, values):
        raise RowError(TOO_LARGE)


def refuse_deflated_bomb(path: Path) -> None:
    """Raise RowError for a DICOM file compressed as a whole that unpacks to too much; pydicom unpacks it at once."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return  # pydicom says what is wrong
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        # Behind the preamble, the mark and the element that holds the length of the others.
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        unpacking, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := unpacking.unconsumed_tail or file.read(_CHUNK):
            unpacked += len(unpacking.decompress(packed, _CHUNK))
            if unpacked > MAX_VOLUME_BYTES:
                raise RowError(f"DICOM file unpacks to more than {MAX_VOLUME_BYTES >> 30} GiB")


def refuse_nifti_bomb(path: Path) -> None:
    """Raise RowError if the header's extensions are too long, or nibabel would take one for the whole file."""
    import nibabel
    from nibabel.openers import ImageOpener

    refusal = RowError("NIfTI file has a header that is too long, or damaged")
    with ImageOpener(path) as file:
        first = file.read(nibabel.Nifti2Header.template_dtype.itemsize)
        is_first = int.from_bytes(first[:4], "little") == 348 or int.from_bytes(first[:4], "big") == 348
        kind = nibabel.Nifti1Header if is_first else nibabel.Nifti2Header
        length = kind.template_dtype.itemsize
        if len(first) < length:
            return  # nibabel says what is wrong
        header = kind(first[:length], check=False)
        end = float(header["vox_offset"])
        if not end <= _MAX_HEADER_BYTES:
            raise refusal
        file.seek(length)
        at = length + 4
        if file.read(4)[:1] in (b"", b"\0"):
            return
        while end - at >= 16:
            file.seek(at)
            size = int.from_bytes(file.read(4), "little" if header.endianness == "<" else "big", signed=True)
            if not 8 <= size <= end - at:
                raise refusal
            at += size


def refuse_large_nifti(file: Any, frame: int, along: int) -> None:
    """Raise RowError if a slice along a stored axis is too large, its volume, or what is unpacked to get to it."""
    item = file.get_data_dtype().itemsize
    width, height = (size for axis, size in enumerate(file.shape[:3]) if axis != along)
    if too_large(width, height, item):
        raise RowError(TOO_LARGE)
    volume = math.prod(file.shape[:3]) * item
    if volume > MAX_VOLUME_BYTES:
        raise RowError(f"NIfTI file has volumes of more than {MAX_VOLUME_BYTES >> 30} GiB")
    if (frame + 1) * volume > MAX_READ_BYTES:
        raise RowError(f"NIfTI file has more than {MAX_READ_BYTES >> 30} GiB up to the end of the volume that is named")
