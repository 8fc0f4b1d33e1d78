"""What is said about one image file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medr1_ray.data.images import load_image
from medr1_ray.data.prepare import image_facts
from medr1_ray.data.prepare.image_facts import ImageFacts, check_image, perceptual_hash
from tests.unit.data.prepare.bad_data import IMAGES, make_image
from tests.unit.data.prepare.pictures import picture


def bits_apart(one: Image.Image, other: Image.Image) -> int:
    return (int(perceptual_hash(one), 16) ^ int(perceptual_hash(other), 16)).bit_count()


def test_perceptual_hash_tells_alike_from_different(tmp_path: Path) -> None:
    original = picture(0)
    original.save(tmp_path / "a.jpg", quality=50)
    assert bits_apart(original, Image.open(tmp_path / "a.jpg")) <= 4
    assert bits_apart(original, original.resize((60, 70))) <= 4
    assert bits_apart(original, original.point(lambda value: 20 + value // 2)) <= 4
    assert min(bits_apart(original, picture(seed)) for seed in range(1, 20)) > 12
    assert bits_apart(original, original.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 12


def test_pixels_and_not_the_file_make_the_hash(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "b.bmp")
    picture(0).convert("RGBA").save(tmp_path / "c.tif")
    picture(1).save(tmp_path / "d.png")
    picture(0).resize((128, 64)).save(tmp_path / "e.png")
    hashes = [check_image(tmp_path, name).image_hash for name in ("a.png", "b.bmp", "c.tif", "d.png", "e.png")]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes)) == 3
    facts = check_image(tmp_path, "e.png")
    assert (facts.width, facts.height, facts.left_out, facts.remark) == (128, 64, None, None)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image_is_left_out_or_remarked_on(tmp_path: Path, kind: str) -> None:
    _, reason, remark = IMAGES[kind]
    make_image(tmp_path / "data/Images/Chest", kind)
    facts = check_image(tmp_path / "data", f"Images/Chest/{kind}")
    assert facts.left_out == reason
    assert (facts.image_hash is None) == (reason is not None)
    assert (facts.remark is None) == (remark is None)
    assert (remark or "") in (facts.remark or "")


def test_the_facts_are_of_the_file_at_the_path(tmp_path: Path) -> None:
    two_colours = Image.new("1", (8, 4))
    two_colours.putpixel((0, 0), 1)
    for name in ("sub/a.PNG", "sub/b.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        two_colours.save(tmp_path / name)
    facts = [check_image(tmp_path, name) for name in ("sub/a.PNG", "sub/b.bmp")]
    for name, one in zip(("sub/a.PNG", "sub/b.bmp"), facts, strict=True):
        status = (tmp_path / name).stat()
        assert (one.path, one.bytes, one.modified_ns) == (name, status.st_size, status.st_mtime_ns)
        assert (one.width, one.height, one.left_out, one.remark) == (8, 4, None, None)
    missing = check_image(tmp_path, "c.png")
    assert missing == ImageFacts("c.png", 0, 0, left_out="image file not found")


def test_what_the_decoder_complains_of_is_remarked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0).save(tmp_path / "a.png")
    read = image_facts.read_rgb

    def complaining(path: str) -> Image.Image:
        for _ in range(2):
            warnings.warn("odd\n metadata", stacklevel=1)
        return read(path)

    monkeypatch.setattr(image_facts, "read_rgb", complaining)
    facts = check_image(tmp_path, "a.png")
    assert (facts.left_out, facts.remark) == (None, "odd metadata")


def test_the_bits_of_a_perceptual_hash_are_the_signs_of_the_lowest_waves() -> None:
    """A picture composed of the 64 waves; of those but the mean 31 are added and 32 subtracted."""
    signs = np.ones(64)
    signs[np.random.default_rng(0).permutation(np.arange(1, 64))[:32]] = -1
    place = (np.arange(32) + 0.5) * np.pi / 32
    waves = np.cos(np.outer(np.arange(8), place))
    weights = 2 * signs.reshape(8, 8)
    weights[0, 0] = 128
    grey = np.rint(waves.T @ weights @ waves).astype(np.uint8)
    bits = "".join("1" if sign > 0 else "0" for sign in signs)
    assert perceptual_hash(Image.fromarray(grey)) == f"{int(bits, 2):016x}"


def test_what_is_checked_can_be_loaded(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    assert check_image(tmp_path, "a.png").left_out is None
    assert load_image(tmp_path / "a.png", 28, "squash").shape == (28, 28, 3)
