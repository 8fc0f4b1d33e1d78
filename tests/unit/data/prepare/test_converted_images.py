"""DICOM files and NIfTI volumes of a table are written as PNG files, once each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medr1_ray.data.prepare import medical_images
from medr1_ray.data.prepare.converted_images import write_converted, write_picture
from medr1_ray.data.prepare.image_facts import check_image
from medr1_ray.data.prepare.image_scan import facts_of_images
from tests.unit.data.prepare.medical_files import dicom, nifti, save


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    (root / "p1").mkdir(parents=True)
    save(dicom(np.array([[[0, 100]], [[100, 0]]], np.uint16)), root / "p1" / "a.dcm")
    save(dicom(np.array([[7, 8]], np.uint8)), root / "IM0001")
    nifti(root / "v.nii.gz", np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    Image.new("RGB", (4, 4), (1, 2, 3)).save(root / "plain.jpg")
    (root / "bad.dcm").write_bytes(b"hello")
    return root


PATHS = ("p1/a.dcm", "p1/a.dcm#frame=1", "IM0001", "v.nii.gz#slice=0,axis=1", "plain.jpg")
NAMES = ("p1/a.dcm.png", "p1/a.dcm.frame=1.png", "IM0001.png", "v.nii.gz.slice=0,axis=1.png", "plain.jpg")


def test_pictures_get_names_of_their_own_and_ordinary_images_are_copied(root: Path) -> None:
    out = root.parent / "out"
    found = write_converted(root, PATHS, None, out, workers=1, seconds=60)
    assert {path: facts.path for path, facts in found.items()} == dict(zip(PATHS, NAMES, strict=True))
    assert [facts.left_out for facts in found.values()] == [None] * 5
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == set(NAMES)
    assert found["p1/a.dcm"].remark == "several frames, the first is used"
    assert found["p1/a.dcm#frame=1"].remark is None
    with Image.open(out / NAMES[1]) as picture:
        assert np.asarray(picture).tolist() == [[255, 0]]
    assert (out / "plain.jpg").read_bytes() == (root / "plain.jpg").read_bytes()
    assert [check_image(out, name).left_out for name in NAMES] == [None] * 5


def test_what_is_written_is_kept_until_the_source_or_the_window_changes(root: Path) -> None:
    out = root.parent / "out"

    def file(window: tuple[float, float] | None = None) -> int:
        facts = write_picture(root, window, out, "p1/a.dcm")
        assert (facts.left_out, facts.remark) == (None, "several frames, the first is used")
        name = "a.dcm.png" if window is None else "a.dcm.center=40,width=400.5.png"
        return (out / "p1" / name).stat().st_ino

    first = file()
    assert file() == first
    os.utime(root / "p1" / "a.dcm", (1, 1))
    second = file()
    assert second != first
    assert file((40, 400.5)) != second
    assert file() == second


def test_other_sources_with_the_times_of_the_first_are_written_anew(root: Path) -> None:
    """As from a copy or an archive that keeps times, into the same folder; the record of facts follows."""
    out, other, record = root.parent / "out", root.parent / "other", root.parent / "images.jsonl"
    names = {"a.dcm": "a.dcm.png", "plain.bmp": "plain.bmp"}

    def shown(root: Path, value: int) -> list[int]:
        root.mkdir(exist_ok=True)
        save(dicom(np.array([[value, value]], np.uint8), SOPInstanceUID="1.2.3"), root / "a.dcm")
        Image.new("RGB", (4, 4), (value, 0, 0)).save(root / "plain.bmp")
        for name in names:
            os.utime(root / name, (0, 1577836800))
        assert [write_picture(root, None, out, name).left_out for name in names] == [None, None]
        hashes = {name: facts.image_hash for name, facts in facts_of_images(out, written, record, 1, 60).items()}
        assert hashes == {name: check_image(out, name).image_hash for name in written}
        return [int(np.asarray(Image.open(out / name)).max()) for name in written]

    written = list(names.values())
    assert shown(root, 50) == [50, 50]
    assert shown(other, 60) == [60, 60]


def test_a_kept_picture_that_is_damaged_is_written_anew(root: Path) -> None:
    out = root.parent / "out"
    write_picture(root, None, out, "IM0001")
    whole = (out / "IM0001.png").read_bytes()
    (out / "IM0001.png").write_bytes(b"none")
    write_picture(root, None, out, "IM0001")
    assert (out / "IM0001.png").read_bytes() == whole


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("bad.dcm", "image cannot be decoded"),
        ("none.dcm", "image file not found"),
        ("p1/a.dcm#frame=2", "DICOM file has no such frame; frames are counted from 0"),
        ("link.dcm", "image is a link that leads out of the dataset's folder"),
        ("none.png", "image file not found"),
        (
            "plain.jpg#frame=1",
            "image path names a frame, slice or window of a file that is neither DICOM nor NIfTI",
        ),
    ],
)
def test_a_picture_that_cannot_be_written_leaves_no_file(root: Path, path: str, reason: str) -> None:
    out = root.parent / "out"
    (root.parent / "elsewhere.dcm").write_bytes((root / "p1" / "a.dcm").read_bytes())
    (root / "link.dcm").symlink_to(root.parent / "elsewhere.dcm")
    facts = write_picture(root, None, out, path)
    assert facts.left_out == reason
    assert ("cannot be read as DICOM" in str(facts.remark)) == (path == "bad.dcm")
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_images(root: Path) -> None:
    (root.parent / "out").write_text("a file")
    with pytest.raises(OSError, match="out"):
        write_picture(root, None, root.parent / "out", "p1/a.dcm")


def test_a_missing_package_is_told_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medical_images, "find_spec", lambda name: None if name == "nibabel" else True)
    with pytest.raises(ValueError, match=r"v\.nii\.gz#slice=0,axis=1: NIfTI files are read with nibabel, which is not"):
        write_converted(root, PATHS, None, root.parent / "out", workers=1, seconds=60)
    assert not (root.parent / "out").exists()
