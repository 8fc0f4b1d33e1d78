"""Small DICOM files and NIfTI volumes, made up."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid


def dicom(pixels: NDArray[Any], colour: bool = False, **elements: Any) -> Dataset:
    """Return a DICOM data set of pixels [rows, columns] or [frames, rows, columns], for colours [..., 3]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    planes = pixels.shape[:-1] if colour else pixels.shape
    dataset.Rows, dataset.Columns = planes[-2:]
    if len(planes) == 3:
        dataset.NumberOfFrames = planes[0]
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def lookup(bits: int, first: int, entries: list[int]) -> Sequence:
    """Return a sequence with a lookup table for values from `first` on."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return Sequence([item])


def jpeg_dicom(pixels: NDArray[np.uint8], syntax: UID = JPEGBaseline8Bit) -> Dataset:
    """Return grey pixels as DICOM with the JPEG of Pillow inside; `syntax` may claim that it is something else."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=100)
    dataset = dicom(pixels)
    dataset.PixelData = encapsulate([content.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, voxels: NDArray[Any], affine: NDArray[Any] | None = None, **header: float) -> Path:
    """Write voxels; `affine` (by default, axes run to right, front and top) tells how they lie in the patient."""
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path
