"""Checks of many images: resuming after an interruption, and decoders that crash."""

from __future__ import annotations

import json
import os
import threading
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from medr1_ray.data.prepare import image_scan as image_checks
from medr1_ray.data.prepare.image_facts import ImageFacts, check_image
from medr1_ray.data.prepare.image_scan import each_in_time, facts_of_images, run_checks
from tests.unit.data.prepare.pictures import picture


def test_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(6):
        picture(index).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_text("none")
    paths = [*(f"{index}.png" for index in range(6)), "bad.png"]
    record = tmp_path / "record.jsonl"
    monkeypatch.setattr(image_checks, "_BATCH", 2)
    whole = facts_of_images(tmp_path, paths, record, workers=1, seconds=60)
    assert list(whole) == paths
    lines = record.read_text().splitlines(keepends=True)
    assert len(lines) == 7

    def looked_at(workers: int = 1) -> list[str]:
        before = record.read_text().count("\n")
        assert facts_of_images(tmp_path, paths, record, workers, seconds=60) == {
            path: check_image(tmp_path, path) for path in paths
        }
        return [json.loads(line)["path"] for line in record.read_text().splitlines()[before:] if "{" in line]

    assert looked_at() == ["bad.png"], "what is not usable is tried again"
    # Interrupted while writing the fourth line.
    record.write_text("".join(lines[:3]) + lines[3][:20] + "\n")
    assert looked_at() == ["3.png", "4.png", "5.png", "bad.png"]
    picture(9).save(tmp_path / "0.png")
    os.utime(tmp_path / "1.png")
    assert looked_at() == ["0.png", "1.png", "bad.png"]


def test_what_is_known_of_images_elsewhere_is_not_taken_for_these(tmp_path: Path) -> None:
    """Other data may be prepared into the same folder: with the same names, sizes and times."""
    record = tmp_path / "record.jsonl"
    for index, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), (index, 0, 0)).save(tmp_path / name / "i.bmp")
        os.utime(tmp_path / name / "i.bmp", (1, 1))
        found = facts_of_images(tmp_path / name, ["i.bmp"], record, workers=1, seconds=60)
        assert found == {"i.bmp": check_image(tmp_path / name, "i.bmp")}


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


def facts_but_of(hanging: set[str], hung: threading.Event, path: str) -> ImageFacts:
    if path in hanging:
        hung.wait(60)
    return ImageFacts(path, 1, 1)


def test_a_read_that_hangs_is_left_out_and_the_others_go_on() -> None:
    """As from a disk or a network file system that does not answer."""
    come_back = threading.Event()
    check = partial(facts_but_of, {"b", "d", "e"}, come_back)
    found = each_in_time(check, 0.05, ["a", "b", "c", "d", "e", "f"])
    come_back.set()
    assert [facts.path for facts in found] == ["a", "b", "c", "d", "e", "f"]
    assert [facts.left_out for facts in found] == [
        "image cannot be read in time" if facts.path in "bde" else None for facts in found
    ]
    assert found[1].remark == "reading it timed out after 0.05 s"


def test_where_all_reads_hang_there_is_an_end() -> None:
    come_back = threading.Event()
    check = partial(facts_but_of, {"b", "c", "d", "e"}, come_back)
    with pytest.raises(RuntimeError, match=r"^4 images in a row could not be read within 0\.05 s each, the last: e; "):
        each_in_time(check, 0.05, ["a", "b", "c", "d", "e", "f"])
    come_back.set()


HANGS = """
def check(paths):
    if "hung" in paths:
        raise RuntimeError("4 images in a row could not be read")
    return []
"""


def test_that_end_is_one_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reader_that_gives_up.py").write_text(HANGS)
    monkeypatch.syspath_prepend(tmp_path)
    import reader_that_gives_up  # type: ignore[import-not-found]

    with pytest.raises(RuntimeError, match=r"^4 images in a row"):
        list(run_checks(reader_that_gives_up.check, [["a"], ["hung"], ["b"]], workers=1))
