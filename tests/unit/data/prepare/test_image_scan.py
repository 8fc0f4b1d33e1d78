"""Checks of many images: resuming after an interruption, and decoders that crash."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medr1_ray.data.prepare import image_scan as image_checks
from medr1_ray.data.prepare.image_facts import ImageFacts, check_image
from medr1_ray.data.prepare.image_scan import facts_of_images, run_checks
from tests.unit.data.prepare.pictures import picture


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
    # Interrupted while writing the fourth line.
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
