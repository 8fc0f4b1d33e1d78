"""Preparing tables, by the command's own arguments."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from medr1_ray.config import DataSettings
from medr1_ray.data.dataset import Dataset, open_dataset
from medr1_ray.data.prepare.__main__ import main
from medr1_ray.data.prepare.image_facts import ImageFacts, check_image
from medr1_ray.data.readers.manifest import read_manifest

HEADER = ["image", "question", "A", "B", "answer", "modality"]
Prepare = Callable[..., int]


def content(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (5, 5), grey).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes for the images, which test_main.py does, takes seconds each time."""

    def facts(root: Path, paths: Sequence[str], *_: object) -> dict[str, ImageFacts]:
        return {path: check_image(root, path) for path in paths}

    monkeypatch.setattr("medr1_ray.data.prepare.__main__.facts_of_images", facts)


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Return the command on a CSV of 60 images in a folder of their own, and rows that follow those."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for index in range(60):
        (tmp_path / "pictures" / f"img1_{index:04}.png").write_bytes(content(index))
        rows.append([f"img1_{index:04}.png", f"Which {index}?", "x", "y", "aB"[index % 2], "PET"])

    def command(*arguments: str, add: Sequence[Sequence[str]] = (), column: Sequence[str] = ()) -> int:
        with (tmp_path / "q.csv").open("w", newline="") as file:
            extra = [[name] for name in column] or [[]] * 61
            csv.writer(file).writerows([row + more for row, more in zip([HEADER, *rows], extra, strict=True)])
            csv.writer(file).writerows(add)
        given = ["--table", str(tmp_path / "q.csv"), "--out", str(tmp_path / "out")]
        return main([*given, "--image-root", str(tmp_path / "pictures"), *arguments])

    return command


def opened(tmp_path: Path, split: str = "grouped") -> Dataset:
    return open_dataset(DataSettings(format="prepared", root=tmp_path / "out", split=split, eval_part="test"))


def test_a_table_of_numbered_images(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare() == 0
    said = capsys.readouterr().out
    # What was understood comes before the reading, which comes before the splits.
    assert said.index("row 4: img1_0004.png") < said.index("60 rows, 60 questions on 60 images") < said.index("split")
    assert "  gold: 'B', which is B) y" in said
    assert (
        "each of the 60 images on its own. By their file names some may belong together: 60 images in 1 group" in said
    )
    assert "split grouped: train 45, validation 3, test 12" in said
    assert "split modality-pet: train 45, validation 3, test 12" in said
    dataset = opened(tmp_path, "modality-pet")
    assert (len(dataset.train), len(dataset.evaluation)) == (45, 12)
    assert {question.modality for question in dataset.train} == {"PET"}


def test_one_volume_only_if_the_user_says_so(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--groups", "paths") == 1
    error = capsys.readouterr().err
    assert "error: split grouped: train 60, validation 0, test 0: test has 0 of 60 images instead of 20%" in error
    assert "1 group that stay whole, the largest (img1) has 60; --groups images splits image by image" in error


def test_patients_stay_whole(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patients = ["Patient ID", *(str(index // 3) for index in range(60))]
    assert prepare(column=patients) == 0
    assert "groups, from the group column: 60 images in 20 groups" in capsys.readouterr().out
    parts = json.loads((tmp_path / "out" / "splits" / "grouped.json").read_text())["parts"]
    of = [{int(id_.split(":")[1]) // 3 for id_ in ids} for ids in parts.values()]
    assert sum(map(len, of)) == len(set.union(*of)) == 20
    assert prepare("--groups", "column") == 1
    assert "--groups column: " in capsys.readouterr().err


def test_the_tables_own_parts(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(column=["split", *["train"] * 50, *["Test"] * 10]) == 0
    said = capsys.readouterr().out
    assert "split own: train 50, validation 0, test 10" in said
    assert "NOTE: no question in validation" in said
    assert f"data.root={tmp_path / 'out'} data.split=own data.eval_part=test" in said
    dataset = opened(tmp_path, "own")
    assert (len(dataset.train), len(dataset.evaluation)) == (50, 10)
    assert prepare(column=["split", *["train"] * 60]) == 1
    assert "split own: train 60, validation 0, test 0: no question in validation and test; name both" in (
        capsys.readouterr().err
    )


def test_rows_left_out_are_in_the_manifest(prepare: Prepare, tmp_path: Path) -> None:
    add = [
        ["img1_0000.png;img1_0001.png", "Which?", "x", "y", "A", "PET"],
        ["no.png", "Which?", "x", "y", "A", "PET"],
        ["img1_0000.png", "Which?", "x", "y", "C", "PET"],
    ]
    assert prepare(add=add) == 0
    left_out = {row.id: row.left_out for row in read_manifest(tmp_path / "out") if row.left_out}
    assert left_out == {
        "q:60": "several images",
        "q:61": "image file not found",
        "q:62": "answer is none of the options",
    }


def test_images_in_the_table_are_written_and_the_folder_can_be_moved(tmp_path: Path) -> None:
    from datasets import Dataset as Saved
    from datasets import Image as ImageType

    cells = [{"bytes": content(index), "path": None} for index in range(20)]
    columns = {"image": cells, "question": ["Which?"] * 20, "options": [["x", "y"]] * 20, "answer": [0, 1] * 10}
    saved = Saved.from_dict(columns).cast_column("image", ImageType())
    saved.to_parquet(tmp_path / "q.parquet")
    assert main(["--table", str(tmp_path / "q.parquet"), "--out", str(tmp_path / "written")]) == 0
    shutil.move(tmp_path / "written", tmp_path / "out")
    dataset = opened(tmp_path)
    assert (len(dataset.train), len(dataset.evaluation)) == (15, 4)
    path = Path(dataset.train[0].image_path)
    assert (path.parent, path.is_file()) == (tmp_path / "out" / "images", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "imgae=x"], "--columns imgae=x: give KEY=NAME with KEY one of image, question, options"),
        (["--columns", "image=x"], "data.table.columns.image=x is not a column; it has"),
        (["--columns", "options=A"], "none of its 60 rows became a question: no options A), B)"),
        (["--answers", "index_from_1"], "none of its 60 rows became a question: answer is none of the options 60"),
        (["--medr1", "x"], "--medr1 is for --root"),
        (["--image-root", "/nowhere"], "--image-root /nowhere is not a folder"),
    ],
)
def test_wrong_arguments(
    prepare: Prepare, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_modality_for_each_image_leaves_nothing_to_hold_out(
    prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["imaging modality", *(f"kind {index}" for index in range(60))]
    assert prepare("--columns", "modality=imaging modality", column=kinds) == 1
    error = capsys.readouterr().err
    assert "each of 60 modalities is divided on its own; add images, or divide all modalities together" in error
    assert prepare("--columns", "modality=", column=kinds) == 0


def test_the_folder_to_write_is_not_a_file(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert prepare() == 1
    found = capsys.readouterr()
    assert found.err.startswith(f"error: --out {tmp_path / 'out'} is a file; give a new folder")
    assert found.out == ""


def test_options_of_tables_are_refused_for_omnimedvqa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "--out", "x", "--answers", "letter"]) == 1
    assert main(["--root", str(tmp_path), "--out", "x", "--groups", "column"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: --answers is for --table, not for --root; leave it out",
        "error: --groups column is for --table; give paths or images with --root",
    ]


def test_folders_without_a_question_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "QA_information").mkdir()
    (tmp_path / "QA_information" / "q.csv").write_text("image,question\n")
    assert main(["--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    found = capsys.readouterr()
    assert "left out: 1 row: file is no annotation file (.json)" in found.out
    assert "error: no row can be used" in found.err
    assert not (tmp_path / "out").exists()


def test_a_table_of_images_that_cannot_be_used_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{index}.png,Which?,CT;MRI,A" for index in range(3)]
    (tmp_path / "q.csv").write_text("\n".join(["image,question,options,answer", *rows]))
    out = tmp_path / "out"
    assert main(["--table", str(tmp_path / "q.csv"), "--out", str(out)]) == 1
    assert "image file not found" in capsys.readouterr().out
    assert not out.exists()
    out.mkdir()
    for index in range(3):
        (tmp_path / f"{index}.png").write_text("no image")
    assert main(["--table", str(tmp_path / "q.csv"), "--out", str(out)]) == 1
    assert list(out.iterdir()) == [], "an empty folder stays"
    assert main(["--table", str(tmp_path / "q.csv"), "--out", str(out), "--answers", "text"]) == 1
    assert "none of its 3 rows became a question" in capsys.readouterr().err
    assert list(out.iterdir()) == []
