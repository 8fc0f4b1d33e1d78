"""Checking images: perceptual hashes, going on where it was, and decoders that crash."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medr1_ray.data import image_checks
from medr1_ray.data.images import load_image
from medr1_ray.data.prepare.image_facts import ImageFacts, check_image, perceptual_hash
from medr1_ray.data.prepare.image_scan import facts_of_images, run_checks


def picture(seed: int, size: int = 128) -> Image.Image:
    """Some large blots."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


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


def test_what_is_checked_can_be_loaded(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    assert check_image(tmp_path, "a.png").left_out is None
    assert load_image(tmp_path / "a.png", 28, "squash").shape == (28, 28, 3)


def test_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(6):
        picture(index).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_text("none")
    paths = [*(f"{index}.png" for index in range(6)), "bad.png"]
    record = tmp_path / "record.jsonl"
    monkeypatch.setattr(image_checks, "_BATCH", 2)
    whole = facts_of_images(tmp_path, paths, record, workers=1)
    assert list(whole) == paths
    lines = record.read_text().splitlines(keepends=True)
    assert len(lines) == 7

    def looked_at(workers: int = 1) -> list[str]:
        before = record.read_text().count("\n")
        assert facts_of_images(tmp_path, paths, record, workers) == {
            path: check_image(tmp_path, path) for path in paths
        }
        return [json.loads(line)["path"] for line in record.read_text().splitlines()[before:] if "{" in line]

    assert looked_at() == ["bad.png"], "what is not usable is tried again"
    # Stopped in the middle of writing the fourth line.
    record.write_text("".join(lines[:3]) + lines[3][:20] + "\n")
    assert looked_at() == ["3.png", "4.png", "5.png", "bad.png"]
    picture(9).save(tmp_path / "0.png")
    os.utime(tmp_path / "1.png")
    assert looked_at() == ["0.png", "1.png", "bad.png"]


KILLER = """
import os
from medr1_ray.data.prepare.image_facts import ImageFacts

def check(paths):
    if "kill" in paths:
        os._exit(1)
    return [ImageFacts(path, 1, 1) for path in paths]
"""


def test_an_image_that_kills_its_reader_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killer_of_readers.py").write_text(KILLER)
    monkeypatch.syspath_prepend(tmp_path)
    import killer_of_readers  # type: ignore[import-not-found]

    batches = [["a", "b"], ["c", "kill", "d"], ["e"], ["f"]]
    found = [facts for batch in run_checks(killer_of_readers.check, batches, workers=2) for facts in batch]
    assert sorted(facts.path for facts in found) == ["a", "b", "c", "d", "e", "f", "kill"]
    assert [facts for facts in found if facts.left_out] == [
        ImageFacts("kill", 0, 0, left_out="image ends the process that reads it")
    ]
