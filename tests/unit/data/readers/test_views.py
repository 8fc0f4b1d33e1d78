"""Image paths that name a frame, a slice or a window of a DICOM file or a NIfTI volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.views import View, medical_format, refuse_view_of_image, split_view


@pytest.mark.parametrize(
    ("path", "file", "view"),
    [
        ("a/scan.dcm", "a/scan.dcm", View()),
        ("a/scan.dcm#frame=3", "a/scan.dcm", View(frame=3)),
        ("SCAN.DCM#frame=0, center=-600,width=1500.5", "SCAN.DCM", View(frame=0, window=(-600, 1500.5))),
        ("v.nii.gz#slice=40,axis=1", "v.nii.gz", View(slice=40, axis=1)),
        ("v.nii#slice=0,frame=2", "v.nii", View(frame=2, slice=0)),
        ("IM0001#frame=7", "IM0001", View(frame=7)),
        # Names of other images may hold a # of their own.
        ("a#1.png", "a#1.png", View()),
        ("a#b=1.png", "a#b=1.png", View()),
        ("slides#2/b.jpg", "slides#2/b.jpg", View()),
    ],
)
def test_what_follows_the_mark_names_a_picture(path: str, file: str, view: View) -> None:
    assert split_view(path) == (file, view)


@pytest.mark.parametrize(
    "text",
    [
        *("", "frame", "frame=", "frame=-1", "frame=1.5", "frame=two", "slice=1e3", "axis=3", "axis=x", "fram=1", "3"),
        *("frame=1,frame=2", "frame=1;slice=2", "frame=1,", "frame=99999999999999999999", "center=40", "width=400"),
        *("center=40,width=0", "center=40,width=-1", "center=nan,width=1", "width=inf,center=0"),
    ],
)
def test_anything_else_is_refused_not_passed_over(text: str) -> None:
    with pytest.raises(RowError, match=r"what follows #|a window in an image path"):
        split_view(f"scan.dcm#{text}")


def test_formats_are_told_by_name_and_without_a_suffix_by_content(tmp_path: Path) -> None:
    dicom = b"\0" * 128 + b"DICM" + b"\2\0"
    for name in ("IM0001", "1.2.840.113619.2.5.17", "picture.png"):
        (tmp_path / name).write_bytes(dicom)
    (tmp_path / "notes").write_bytes(b"DICM")
    found = {path.name: medical_format(path) for path in tmp_path.iterdir()}
    assert found == {"IM0001": "DICOM", "1.2.840.113619.2.5.17": "DICOM", "picture.png": None, "notes": None}
    by_name = ("a.DCM", "a.dicom", "a.ima", "a.nii", "a.NII.GZ", "a.gz", "none", "a\0b")
    assert [medical_format(name) for name in by_name] == ["DICOM"] * 3 + ["NIfTI"] * 2 + [None] * 3


def test_an_ordinary_image_has_no_frames_or_slices_to_name(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "stack").write_bytes(b"II*")
    for path in ("stack#frame=0", "none.tif#frame=1", "a.png#center=40,width=400"):
        with pytest.raises(RowError, match="names a frame, slice or window of a file that is neither DICOM nor NIfTI"):
            refuse_view_of_image(tmp_path / split_view(path)[0], path)
    # Of one that is not there it cannot be told.
    for path in ("stack", "a#1.png", "IM0001#frame=7", "scan.dcm#frame=7", "none#frame=1"):
        refuse_view_of_image(tmp_path / split_view(path)[0], path)
