"""Phantoms on disk, in OmniMedVQA's layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medr1_ray.data.phantoms import (
    MODALITIES,
    ensure_dataset,
    write_dataset,
)


def test_the_layout_is_omnimedvqas_and_the_same_every_time(tmp_path: Path) -> None:
    first, second, longer = tmp_path / "a", tmp_path / "deep" / "b", tmp_path / "c"
    write_dataset(first, images=16, seed=1, size=64)
    write_dataset(second, images=16, seed=1, size=64)
    write_dataset(longer, images=24, seed=1, size=64)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes()
        if path.parts[0] == "Images":
            assert (first / path).read_bytes() == (longer / path).read_bytes()
    assert {path.suffix for path in files} == {".png", ".jpg", ".bmp", ".json"}

    questions = 0
    for modality in MODALITIES:
        dataset = f"Phantom {modality}"
        rows = json.loads((first / "QA_information" / "Open-access" / f"{dataset}.json").read_text())
        questions += len(rows)
        assert len({row["question_id"] for row in rows}) == len(rows)
        assert len({row["image_path"] for row in rows}) == 2
        for row in rows:
            options = [row[key] for key in ("option_A", "option_B", "option_C", "option_D") if key in row]
            assert set(row) == {
                *("dataset", "question_id", "question_type", "question", "gt_answer", "image_path"),
                *("option_A", "option_B", "option_C", "option_D")[: len(options)],
                "modality_type",
            }
            assert row["dataset"] == dataset
            assert row["gt_answer"] in options
            assert (first / row["image_path"]).is_file()
    manifest = json.loads((first / "phantoms.json").read_text())
    assert manifest == {"images": 16, "seed": 1, "size": 64, "generator_version": 1, "questions": questions}


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    for write in (write_dataset, ensure_dataset):
        with pytest.raises(ValueError, match="not an empty directory"):
            write(tmp_path, images=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_dataset_is_written_once_and_not_mistaken_for_another(tmp_path: Path) -> None:
    out = tmp_path / "phantoms"
    out.mkdir()
    ensure_dataset(out, images=8, seed=0, size=56)
    written = (out / "phantoms.json").stat().st_mtime_ns
    ensure_dataset(out, images=8, seed=0, size=56)
    assert (out / "phantoms.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"images 8 \(asked for: 9\)"):
        ensure_dataset(out, images=9, seed=0, size=56)


def test_two_runs_may_write_the_same_dataset_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "phantoms"
    replace = os.replace

    def after_another(source: Path, target: Path) -> None:
        monkeypatch.undo()
        ensure_dataset(target, images=8, seed=0, size=56)
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    ensure_dataset(out, images=8, seed=0, size=56)
    assert list(tmp_path.iterdir()) == [out]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medr1_ray.data.phantoms.write.phantom_questions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "phantoms", images=8, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "value"), [("images", 0), ("seed", -1), ("size", 55)])
def test_parameters_out_of_range_are_refused(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        write_dataset(tmp_path / "phantoms", **{"images": 1, "seed": 0, "size": 56, key: value})
    assert list(tmp_path.iterdir()) == []
