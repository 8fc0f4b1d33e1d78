"""DICOM files and NIfTI volumes become 8-bit images; made-up files whose every grey value is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, JPEGLosslessSV1, RLELossless

from medr1_ray.data.images import load_image
from medr1_ray.data.prepare import medical_images
from medr1_ray.data.prepare.medical_images import read_medical_image, refuse_missing_package
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.views import View
from tests.unit.data.prepare.medical_files import dicom, jpeg_dicom, lookup, nifti, save

HOUNSFIELD = np.array([[0, 1000, 1024], [1064, 1264, 3000]], np.uint16)  # with the intercept -1024


def shown(dataset: Dataset, folder: Path, view: View | None = None) -> list[Any]:
    picture, _ = read_medical_image(save(dataset, folder / "a.dcm"), "DICOM", view or View())
    return np.asarray(picture).tolist()


def ct(**elements: Any) -> Dataset:
    return dicom(HOUNSFIELD, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=-1024, **elements)


def test_rescaling_and_the_first_window_of_the_file(tmp_path: Path) -> None:
    # DICOM's linear function (PS3.3 C.11.2.1.2.1) with center 40 and width 401: (x - 39.5) / 400 + 0.5 of white, for
    # values of -1024, -24, 0, 40, 240 and 1976: 0, 86.4, 101.7, 127.8 and twice white.
    window = ct(WindowCenter=[40, -600], WindowWidth=[401, 1500])
    assert shown(window, tmp_path) == [[0, 87, 102], [128, 255, 255]]


def test_a_given_window_is_taken_before_the_files_window_table_and_function(tmp_path: Path) -> None:
    file = ct(WindowCenter=-600, WindowWidth=1500, VOILUTFunction="SIGMOID", VOILUTSequence=lookup(8, 0, [7, 9]))
    expected = [[0, 87, 102], [128, 255, 255]]
    assert shown(file, tmp_path, View(window=(40, 401))) == expected


def test_a_window_in_which_all_values_lie_is_not_stretched(tmp_path: Path) -> None:
    pixels = np.array([[100, 150]], np.int16)
    assert shown(dicom(pixels, WindowCenter=100.5, WindowWidth=201), tmp_path) == [[128, 191]]  # 100.5 and 150 of 200


@pytest.mark.parametrize("empty", [{}, {"WindowCenter": None, "WindowWidth": None}, {"WindowCenter": 40}])
def test_without_a_window_the_full_range_is_shown(tmp_path: Path, empty: dict[str, Any]) -> None:
    # 3000 values over 255: 1000 is 85, 1024 is 87.04, 1064 is 90.44, 1264 is 107.44.
    assert shown(ct(**empty), tmp_path) == [[0, 85, 87], [90, 107, 255]]


def test_eight_bits_without_a_window_stay_as_they_are(tmp_path: Path) -> None:
    assert shown(dicom(np.array([[10, 200]], np.uint8)), tmp_path) == [[10, 200]]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    file = dicom(np.array([[0, 50, 255]], np.uint8), PhotometricInterpretation="MONOCHROME1")
    assert shown(file, tmp_path) == [[255, 205, 0]]


def test_a_lookup_table_is_shown_over_its_own_range(tmp_path: Path) -> None:
    # Values 2 to 5 have entries; below and above, the first and the last are taken.
    file = dicom(np.array([[0, 3, 4, 900]], np.uint16), VOILUTSequence=lookup(12, 2, [0, 1024, 2048, 4095]))
    assert shown(file, tmp_path) == [[0, 64, 128, 255]]


def test_a_lookup_table_of_bytes_may_have_more_than_256_entries(tmp_path: Path) -> None:
    """Here pydicom itself counts modulo 256, so value 1000 would be as dark as 232."""
    entries = [min(value // 4, 255) for value in range(1024)]
    file = dicom(np.array([[0, 400, 1000]], np.uint16), VOILUTSequence=lookup(8, 0, entries))
    assert shown(file, tmp_path) == [[0, 100, 250]]


def test_a_sigmoid_window(tmp_path: Path) -> None:
    file = dicom(np.array([[0, 100, 1000]], np.uint16), WindowCenter=100, WindowWidth=50, VOILUTFunction="SIGMOID")
    assert shown(file, tmp_path) == [[0, 128, 255]]  # half of white at the center


def test_frames_are_counted_from_0_and_the_first_is_taken_with_a_remark(tmp_path: Path) -> None:
    path = save(dicom(np.arange(3 * 2, dtype=np.uint8).reshape(3, 1, 2)), tmp_path / "a.dcm")
    picture, remarks = read_medical_image(path, "DICOM", View())
    assert (np.asarray(picture).tolist(), remarks) == ([[0, 1]], ["several frames, the first is used"])
    picture, remarks = read_medical_image(path, "DICOM", View(frame=2))
    assert (np.asarray(picture).tolist(), remarks) == ([[4, 5]], [])
    with pytest.raises(RowError, match="no such frame"):
        read_medical_image(path, "DICOM", View(frame=3))
    with pytest.raises(RowError, match="name a frame"):
        read_medical_image(path, "DICOM", View(slice=1))


def test_enhanced_files_keep_rescaling_and_window_by_frame(tmp_path: Path) -> None:
    def group(name: str, **elements: Any) -> Dataset:
        item, outer = Dataset(), Dataset()
        for key, value in elements.items():
            setattr(item, key, value)
        setattr(outer, name, Sequence([item]))
        return outer

    windows = [group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=101) for center in (50.5, 150.5)]
    file = dicom(
        np.array([[[1050, 1150]]] * 2, np.uint16),
        SharedFunctionalGroupsSequence=Sequence(
            [group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1000)]
        ),
        PerFrameFunctionalGroupsSequence=Sequence(windows),
    )
    assert shown(file, tmp_path, View(frame=0)) == [[128, 255]]  # 50 and 150 in a window from 0 to 100
    assert shown(file, tmp_path, View(frame=1)) == [[0, 128]]  # in one from 100 to 200


def test_colours(tmp_path: Path) -> None:
    rgb = np.array([[[255, 0, 0], [1, 2, 3]]], np.uint8)
    assert shown(dicom(rgb, colour=True), tmp_path) == rgb.tolist()
    # The full-range YCbCr of red (ITU-R BT.601): 76, 85, 255.
    ybr = dicom(np.array([[[76, 85, 255]]], np.uint8), colour=True, PhotometricInterpretation="YBR_FULL")
    assert np.abs(np.array(shown(ybr, tmp_path)) - [255, 0, 0]).max() <= 1
    assert shown(dicom(rgb.astype(np.uint16) * 256, colour=True), tmp_path) == rgb.tolist()


def test_a_palette(tmp_path: Path) -> None:
    file = dicom(np.array([[0, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for colour, entries in (("Red", [0, 200]), ("Green", [10, 100]), ("Blue", [20, 0])):
        setattr(file, f"{colour}PaletteColorLookupTableDescriptor", [2, 0, 16])
        setattr(file, f"{colour}PaletteColorLookupTableData", (np.array(entries, np.uint16) * 256).tobytes())
    assert shown(file, tmp_path) == [[[0, 10, 20], [200, 100, 0]]]


def test_compressed_files(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    runs = dicom(pixels)
    runs.compress(RLELossless)
    assert shown(runs, tmp_path) == pixels.tolist()
    assert np.abs(np.array(shown(jpeg_dicom(pixels), tmp_path)) - pixels).max() <= 3


def test_a_compression_without_a_decoder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    path = save(jpeg_dicom(pixels, JPEGLosslessSV1), tmp_path / "a.dcm")
    # Whatever is installed here.
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    with pytest.raises(RowError, match=r"JPEG Lossless.*pip install pylibjpeg pylibjpeg-libjpeg"):
        read_medical_image(path, "DICOM", View())
    with pytest.raises(RowError, match=r"MPEG2.*pydicom does not decode"):
        read_medical_image(save(jpeg_dicom(pixels, MPEG2MPML), path), "DICOM", View())
    path.write_bytes(path.read_bytes().replace(MPEG2MPML.encode(), b"1.2.840.10008.1.2.4.199"))
    with pytest.raises(RowError, match=r"something unknown, which pydicom does not decode"):
        read_medical_image(path, "DICOM", View())


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_missing_package("DICOM", "a.dcm")
    refuse_missing_package("NIfTI", "a.nii")
    monkeypatch.setattr(medical_images, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"a\.dcm: .*pydicom, which is not installed; pip install 'medr1_ray\[m"):
        refuse_missing_package("DICOM", "a.dcm")
    with pytest.raises(ValueError, match=r"a\.nii: .*nibabel, which is not installed"):
        refuse_missing_package("NIfTI", "a.nii")


def lies_as(directions: str) -> NDArray[np.float64]:
    """Return the affine of a volume whose axes run towards e.g. `LPS`: left, posterior (back), superior (top)."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, towards in enumerate(directions):
        axis = next(index for index, pair in enumerate(("RL", "AP", "SI")) if towards in pair)
        affine[axis, stored] = 1 if towards in "RAS" else -1
    return affine


@pytest.mark.parametrize("directions", ["RAS", "LPS", "LAS", "PIR", "SAL"])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_slices_are_the_patients_however_the_volume_is_stored(tmp_path: Path, directions: str, ending: str) -> None:
    """One bright voxel, 1 of 4 from the left, 2 of 5 from the back, 4 of 6 from the bottom."""
    patient = np.zeros((4, 5, 6), np.uint8)
    patient[1, 2, 4] = 200
    order = [next(index for index, pair in enumerate(("RL", "AP", "SI")) if one in pair) for one in directions]
    stored = patient.transpose(order)
    flips = tuple(slice(None, None, 1 if one in "RAS" else -1) for one in directions)
    path = nifti(tmp_path / f"v.{ending}", np.ascontiguousarray(stored[flips]), lies_as(directions))

    def bright(view: View) -> tuple[tuple[int, int], list[list[int]]]:
        pixels = np.asarray(read_medical_image(path, "NIfTI", view)[0])
        return pixels.shape, np.argwhere(pixels).tolist()

    # The right hand is on the left of the picture: column 4 - 1 - 1; the front is up: row 5 - 1 - 2.
    assert bright(View(slice=4)) == ((5, 4), [[2, 2]])
    assert bright(View(slice=3))[1] == []
    assert bright(View(axis=1, slice=2)) == ((6, 4), [[1, 2]])
    # From the side, the face looks to the left: column 5 - 1 - 2.
    assert bright(View(axis=0, slice=1)) == ((6, 5), [[1, 2]])


def test_without_a_slice_the_middle_one_from_below(tmp_path: Path) -> None:
    voxels = np.zeros((2, 2, 5), np.int16)
    voxels[0, 0, 2] = 7
    picture, remarks = read_medical_image(nifti(tmp_path / "v.nii", voxels), "NIfTI", View())
    assert (np.asarray(picture).max(), remarks) == (255, ["no slice is named, the middle one is used"])


def test_values_of_a_slice_are_shown_in_the_window_the_headers_or_their_own_range(tmp_path: Path) -> None:
    voxels = np.array([0, 50, 100, 200], np.float32).reshape(4, 1, 1)  # from left to right, so shown reversed
    view = View(slice=0)

    def values(view: View, **header: float) -> list[int]:
        picture, _ = read_medical_image(nifti(tmp_path / "v.nii", voxels, **header), "NIfTI", view)
        return np.asarray(picture)[0, ::-1].tolist()

    assert values(view) == [0, 64, 128, 255]
    assert values(view, cal_min=50, cal_max=100) == [0, 0, 255, 255]
    assert values(View(slice=0, window=(100, 100)), cal_max=9) == [0, 0, 128, 255]
    voxels[1] = np.nan
    assert values(view) == [0, 0, 128, 255]


def test_slope_and_intercept_of_a_volume(tmp_path: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(np.array([0, 10, 20], np.int16).reshape(3, 1, 1), np.eye(4))
    image.header.set_slope_inter(2, -10)
    nibabel.save(image, tmp_path / "v.nii.gz")
    picture, _ = read_medical_image(tmp_path / "v.nii.gz", "NIfTI", View(slice=0, window=(10, 40)))
    assert np.asarray(picture)[0, ::-1].tolist() == [0, 128, 255]  # -10, 10 and 30 between -10 and 30


def test_a_fourth_dimension_counts_frames(tmp_path: Path) -> None:
    voxels = np.zeros((2, 2, 2, 3), np.uint8)
    voxels[..., 1] = [[[9, 9], [0, 0]]] * 2
    path = nifti(tmp_path / "v.nii.gz", voxels)
    picture, remarks = read_medical_image(path, "NIfTI", View(slice=0))
    assert (np.asarray(picture).max(), remarks) == (0, ["several frames, the first is used"])
    assert np.asarray(read_medical_image(path, "NIfTI", View(slice=0, frame=1))[0]).max() == 255
    with pytest.raises(RowError, match="no such frame"):
        read_medical_image(path, "NIfTI", View(frame=3))
    with pytest.raises(RowError, match="no such slice"):
        read_medical_image(path, "NIfTI", View(slice=2))


@pytest.mark.parametrize("shape", [(4,), (4, 4), (2, 2, 2, 2, 2)])
def test_other_numbers_of_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(RowError, match="not a volume of three dimensions"):
        read_medical_image(nifti(tmp_path / "v.nii", np.zeros(shape, np.uint8)), "NIfTI", View())


def test_colours_of_a_volume_are_refused(tmp_path: Path) -> None:
    voxels = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(RowError, match="colours or complex numbers"):
        read_medical_image(nifti(tmp_path / "v.nii", voxels), "NIfTI", View())


def test_files_without_a_picture(tmp_path: Path) -> None:
    report = ct()
    del report.PixelData
    with pytest.raises(RowError, match="holds no picture"):
        shown(report, tmp_path)


def test_damaged_files_of_every_length_end_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (8, 8, 8))
    whole = {
        "a.dcm": save(dicom(noise.astype(np.uint16), WindowCenter=40, WindowWidth=400), tmp_path / "a.dcm"),
        "v.nii": nifti(tmp_path / "v.nii", noise.astype(np.int16)),
        "v.nii.gz": nifti(tmp_path / "v.nii.gz", noise.astype(np.int16)),
    }
    for name, path in whole.items():
        content = path.read_bytes()
        kind = "DICOM" if name.endswith(".dcm") else "NIfTI"
        others = [b"", b"hello" * 100, b"\x89PNG\r\n\x1a\n" + bytes(500), bytes(2000), content[:-1][::-1]]
        cuts = [content[:length] for length in range(1, len(content) // 2, max(1, len(content) // 40))]
        for damaged in [*others, *cuts]:
            (tmp_path / f"bad-{name}").write_bytes(damaged)
            with pytest.raises((ValueError, RowError)) as error:
                read_medical_image(tmp_path / f"bad-{name}", kind, View(frame=7 if kind == "DICOM" else 0, slice=None))
            assert type(error.value) in (ValueError, RowError)


def test_the_picture_is_one_that_training_reads(tmp_path: Path) -> None:
    picture, _ = read_medical_image(save(ct(), tmp_path / "a.dcm"), "DICOM", View())
    picture.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 8, "squash").shape == (8, 8, 3)
