"""Image files of every kind become RGB squares."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medr1_ray.data import images
from medr1_ray.data.images import load_image


def flat(mode: str, colour: object, path: Path) -> Path:
    Image.new(mode, (6, 6), colour).save(path)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "tif", "bmp", "JPG", "BMP"])
def test_every_ending(tmp_path: Path, ending: str) -> None:
    image = load_image(flat("RGB", (200, 100, 50), tmp_path / f"a.{ending}"), 8, "squash")
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - [200, 100, 50]).max() <= 2  # JPEG rounds


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "rgb"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("LA", (77, 0), "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("RGBA", (10, 20, 30, 0), "png", (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("CMYK", (255, 0, 255, 0), "jpg", (0, 255, 0)),
    ],
)
def test_every_mode(tmp_path: Path, mode: str, colour: object, ending: str, rgb: tuple[int, ...]) -> None:
    image = load_image(flat(mode, colour, tmp_path / f"a.{ending}"), 6, "squash")
    assert np.abs(image.astype(int) - rgb).max() <= 2


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(tmp_path / "a.png", transparency=bytes([255, 100]))
    assert (load_image(tmp_path / "a.png", 6, "squash") == [9, 8, 7]).all()


@pytest.mark.parametrize(("dtype", "ending"), [("uint16", "png"), ("uint16", "tif"), ("float32", "tif")])
def test_deep_grey_is_scaled_by_its_own_range(tmp_path: Path, dtype: str, ending: str) -> None:
    values = np.array([[1000, 1000], [2000, 3000]], dtype=dtype)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    # (value - 1000) / 2000 * 255: 2000 is 127.5, rounded to even.
    assert load_image(tmp_path / f"a.{ending}", 2, "squash")[..., 0].tolist() == [[0, 0], [128, 255]]


def test_constant_deep_grey_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 3000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 4, "squash").max() == 0


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:, :2] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: what is stored on the left comes to the top
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png", 4, "squash")
    assert (image[:2] == [255, 0, 0]).all()
    assert image[2:].max() == 0


def wide(tmp_path: Path) -> NDArray[np.uint8]:
    path = tmp_path / "wide.png"
    Image.new("RGB", (80, 40), (255, 255, 255)).save(path)
    return load_image(path, 40, "pad")


def test_pad_keeps_the_aspect_ratio_on_black(tmp_path: Path) -> None:
    image = wide(tmp_path)
    assert image[:10].max() == image[30:].max() == 0
    assert image[10:30].min() == 255


def test_squash_is_the_references_resize(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(pixels).resize((20, 20)))  # Pillow's default, as Med-R1 calls it
    assert (load_image(tmp_path / "a.png", 20, "squash") == expected).all()


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.png"):
        load_image(tmp_path / "none.png", 8, "squash")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png"):
        load_image(tmp_path / "text.png", 8, "squash")
    whole = flat("RGB", (1, 2, 3), tmp_path / "whole.bmp").read_bytes()
    (tmp_path / "cut.bmp").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"cut\.bmp"):
        load_image(tmp_path / "cut.bmp", 8, "squash")
    (tmp_path / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(ValueError, match=r"scan\.dcm: .*; write the pictures of DICOM files with medr1_ray\.data"):
        load_image(tmp_path / "scan.dcm", 8, "squash")


def test_every_real_image(shared_data: Path) -> None:
    paths = [path for path in (shared_data / "realmini" / "Images").rglob("*") if path.is_file()]
    assert len(paths) == 148
    for path in paths:
        image = load_image(path, 84, "squash")
        assert image.shape == (84, 84, 3)
        assert image.std() > 5, path  # not blank


def test_a_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    """Opening one waits for a writer, for ever."""
    for name in ("pipe.png", "pipe"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image \(it is not a regular file\)"):
            load_image(tmp_path / name, 8, "squash")
    with pytest.raises(ValueError, match="not a regular file"):
        load_image("/dev/zero", 8, "squash")
    with pytest.raises(ValueError, match="not a regular file"):
        load_image(tmp_path, 8, "squash")


@pytest.mark.parametrize(
    ("mode", "most"),
    [("L", 36), ("P", 36), ("I;16", 36), ("RGB", 36), ("RGBA", 27), ("I", 27), ("F", 27)],
)
def test_what_is_decoded_is_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, most: int
) -> None:
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 108)
    path = tmp_path / "a.tif"
    Image.new(mode, (most, 1)).save(path)
    assert load_image(path, 8, "squash").shape == (8, 8, 3)
    Image.new(mode, (most + 1, 1)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=rf"a\.tif.*\({most + 1} x 1 pixels take more than 0 MiB"):
        load_image(path, 8, "squash")


def test_a_small_file_of_many_deep_pixels_is_refused_at_once(tmp_path: Path) -> None:
    """The one that took 2.3 GiB had 9,459 x 9,459; to make it takes as long as to read it, so this is its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 9459, 9459, 16, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + bytes(4))
    with pytest.raises(ValueError, match="9459 x 9459 pixels take more than 192 MiB when they are decoded"):
        load_image(tmp_path / "a.png", 384, "squash")


def test_bands_of_a_deep_image_share_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (7, 5), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    whole = images.read_rgb(tmp_path / "a.png")
    monkeypatch.setattr(images, "_BAND_VALUES", 6)
    assert (np.asarray(images.read_rgb(tmp_path / "a.png")) == np.asarray(whole)).all()


def tiff(path: Path, values: NDArray[np.generic], photometric: int, orientation: int = 1) -> Path:
    """Write a TIFF file of one strip, with tags that Pillow does not write."""
    height, width = values.shape
    data = values.tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [(256, width), (257, height), (258, values.dtype.itemsize * 8), (259, 1), (262, photometric), (273, 8)]
    tags += [(274, orientation), (277, 1), (278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_files_whose_0_is_white(tmp_path: Path, dtype: str) -> None:
    values = np.array([[0, 0, 51, 255]], dtype)
    black = load_image(tiff(tmp_path / "black.tif", values, 1), 4, "squash")[0, :, 0]
    white = load_image(tiff(tmp_path / "white.tif", values, 0), 4, "squash")[0, :, 0]
    assert black.tolist() == [0, 0, 51, 255]
    assert white.tolist() == [255, 255, 204, 0]
    constant = tiff(tmp_path / "constant.tif", np.full((2, 2), 300, np.uint16), 0)
    assert load_image(constant, 2, "squash").max() == 0


@pytest.mark.parametrize(("dtype", "least"), [("uint32", 0), ("int32", -(2**31)), ("int16", -(2**15))])
@pytest.mark.parametrize("orientation", [1, 3])  # as it is, and turned by half
def test_whole_numbers_of_tiff_files_keep_their_order(
    tmp_path: Path, dtype: str, least: int, orientation: int
) -> None:
    values = np.linspace(least, np.iinfo(dtype).max, 6).astype(dtype)[None].repeat(6, 0)
    shown = load_image(tiff(tmp_path / "a.tif", values, 1, orientation), 6, "squash")[0, :, 0].tolist()
    assert (shown if orientation == 1 else shown[::-1]) == [0, 51, 102, 153, 204, 255]
