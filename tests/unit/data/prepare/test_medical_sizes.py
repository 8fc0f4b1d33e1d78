"""Files that would take too much memory or time are refused before they are read."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medr1_ray.data import images
from medr1_ray.data.prepare import medical_sizes
from medr1_ray.data.prepare.medical_images import read_medical_image
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.views import View
from tests.unit.data.prepare.medical_files import dicom, nifti, save


def test_a_large_frame_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(dicom(np.zeros((2, 3), np.uint16)), tmp_path / "a.dcm")
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 18)
    assert read_medical_image(path, "DICOM", View())[0].size == (3, 2)
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 17)
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(RowError, match="takes more than 192 MiB when it is decoded"):
        read_medical_image(path, "DICOM", View())


def test_a_dicom_file_that_is_compressed_as_a_whole_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dicom(np.zeros((64, 64), np.uint8))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(dataset, tmp_path / "a.dcm")
    assert path.stat().st_size < 1000
    assert read_medical_image(path, "DICOM", View())[0].size == (64, 64)
    monkeypatch.setattr(medical_sizes, "MAX_VOLUME_BYTES", 4096)
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("unpacked at once"))
    with pytest.raises(RowError, match="unpacks to more than"):
        read_medical_image(path, "DICOM", View())


@pytest.mark.parametrize(
    ("limit", "bytes_allowed", "frame", "refused"),
    [
        ("MAX_VOLUME_BYTES", 48, 0, None),
        ("MAX_VOLUME_BYTES", 47, 0, "volumes of more than"),
        ("MAX_READ_BYTES", 96, 1, None),
        ("MAX_READ_BYTES", 95, 1, "up to the end of the volume that is named"),
        ("MAX_READ_BYTES", 95, 0, None),
    ],
)
def test_a_volume_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, bytes_allowed: int, frame: int, refused: str | None
) -> None:
    path = nifti(tmp_path / "v.nii.gz", np.zeros((2, 3, 4, 2), np.int16))
    monkeypatch.setattr(medical_sizes, limit, bytes_allowed)
    if refused is None:
        assert read_medical_image(path, "NIfTI", View(frame=frame))[0].size == (2, 3)
    else:
        with pytest.raises(RowError, match=refused):
            read_medical_image(path, "NIfTI", View(frame=frame))


def test_a_large_slice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path / "v.nii", np.zeros((2, 3, 1), np.uint8))
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 17)
    with pytest.raises(RowError, match="takes more than 192 MiB when it is decoded"):
        read_medical_image(path, "NIfTI", View())


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("size", [0, -8, 7, 10**9])
def test_a_header_that_asks_for_all_there_is_does_not_get_it(tmp_path: Path, kind: type, order: str, size: int) -> None:
    """nibabel reads an extension of the size that the file says: of size 0, the whole file, whatever it unpacks to."""
    image = kind(np.zeros((2, 2, 2), np.uint8), np.eye(4), kind.header_class(endianness=order))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"a comment"))
    path = tmp_path / "v.nii.gz"
    nibabel.save(image, path)
    assert read_medical_image(path, "NIfTI", View())[0].size == (2, 2)
    content = bytearray(gzip.decompress(path.read_bytes()))
    start = kind.header_class.template_dtype.itemsize + 4
    assert struct.unpack_from(f"{order}i", content, start)[0] == 32
    struct.pack_into(f"{order}i", content, start, size)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(content)
        file.write(bytes(2**23))
    tracemalloc.start()
    with pytest.raises(RowError, match="a header that is too long, or damaged"):
        read_medical_image(path, "NIfTI", View())
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_volume_that_begins_far_behind_the_header_is_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "v.nii", np.zeros((2, 2, 2), np.uint8))
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 108, 1e12)
    path.write_bytes(content)
    with pytest.raises(RowError, match="a header that is too long, or damaged"):
        read_medical_image(path, "NIfTI", View())
