"""From a table that names DICOM files and NIfTI volumes to a training, by the commands that errors give."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medr1_ray.config import DataSettings, TableSettings
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.prepare.__main__ import main
from medr1_ray.data.prepare.image_facts import ImageFacts, check_image
from medr1_ray.data.readers.manifest import read_manifest
from tests.repository import REPOSITORY
from tests.unit.data.prepare.medical_files import dicom, nifti, save

Check = Callable[[Sequence[str]], list[ImageFacts]]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes for the images takes seconds each time; test_converted_images.py does."""

    def facts(root: Path, paths: Sequence[str], *_: object) -> dict[str, ImageFacts]:
        return {path: check_image(root, path) for path in paths}

    def checks(check: Check, batches: Sequence[Sequence[str]], workers: int) -> Iterator[list[ImageFacts]]:
        return map(check, batches)

    monkeypatch.setattr("medr1_ray.data.prepare.__main__.facts_of_images", facts)
    monkeypatch.setattr("medr1_ray.data.prepare.converted_images.run_checks", checks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a table of 12 DICOM files, 4 volumes of 5 slices, a PNG file, and what is not usable."""
    images = tmp_path / "scans"
    noise = np.random.default_rng(0)
    rows = [["image", "question", "A", "B", "answer"]]

    def add(image: str) -> None:
        rows.append([image, f"Which {len(rows)}?", "x", "y", "A"])

    for index in range(12):
        pixels = noise.integers(0, 2000, (9, 9), np.uint16)
        save(dicom(pixels, RescaleSlope=1, RescaleIntercept=-1000), images / f"p{index}" / "ct.dcm")
        add(f"p{index}/ct.dcm")
    for index in range(4):
        nifti(images / f"v{index}.nii.gz", noise.integers(0, 99, (9, 9, 5), np.uint8))
        for slice_ in range(5):
            add(f"v{index}.nii.gz#slice={slice_}")
    Image.fromarray(noise.integers(0, 255, (9, 9), np.uint8)).save(images / "plain.png")
    (images / "bad.dcm").write_bytes(b"DICOM")
    for image in ("plain.png", "bad.dcm", "none.dcm", "v0.nii.gz#slice=5", "v0.nii.gz#slice=x", "v1.nii.gz"):
        add(image)
    with (tmp_path / "q.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def settings(folder: Path) -> DataSettings:
    return DataSettings(
        format="table",
        root=folder,
        image_root=folder / "scans",
        table=TableSettings(file="q.csv", answers="letter"),
    )


def test_training_says_the_command_that_prepares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"35 rows name DICOM files or NIfTI volumes, e\.g\. .*p0/ct\.dcm") as error:
        open_dataset(settings(folder))
    command, then = str(error.value).partition("files first: ")[2].split(", then train with ")
    words = shlex.split(command.replace("DIR", str(folder / "out")))
    assert words[:3] == ["python", "-m", "medr1_ray.data.prepare"]
    assert main(words[3:]) == 0
    said = capsys.readouterr().out
    assert "row 0: p0/ct.dcm\n" in said
    assert "groups: 34 images of 17 files, those of one file together" in said
    assert "data.format=prepared data.root=DIR data.table=null data.image_root=null" in then

    shutil.move(folder / "out", folder / "moved")
    dataset = open_dataset(DataSettings(format="prepared", root=folder / "moved", eval_part="test"))
    path = Path(dataset.train[0].image_path)
    assert (path.is_relative_to(folder / "moved" / "images"), path.is_file()) == (True, True)
    left_out = {row.id: row.left_out for row in read_manifest(folder / "moved") if row.left_out}
    assert left_out == {
        "q:33": "image cannot be decoded",
        "q:34": "image file not found",
        "q:35": "NIfTI file has no such slice along this axis; slices are counted from 0",
        "q:36": "what follows # in the image path is not like frame=3 or slice=40,axis=2",
    }
    remarks = {row.id: row.remark for row in read_manifest(folder / "moved") if row.remark and not row.left_out}
    assert remarks == {"q:37": "no slice is named, the middle one is used"}
    # The slices of a volume stay on one side.
    parts = json.loads((folder / "moved" / "splits" / "grouped.json").read_text())["parts"]
    numbers = [[int(id_.removeprefix("q:")) for id_ in ids] for ids in parts.values()]
    assert sum(len({(number - 12) // 5 for number in some if 12 <= number < 32}) for some in numbers) == 4


def test_a_window_is_given_for_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--table", str(folder / "q.csv"), "--image-root", str(folder / "scans"), "--out", str(folder / "out")]
    assert main([*given, "--window", "-600", "0"]) == 1
    assert capsys.readouterr().err == "error: --window -600 0: give two numbers, the width above 0\n"
    assert main([*given, "--window", "nan", "3"]) == 1
    assert capsys.readouterr().err == "error: --window nan 3: give two numbers, the width above 0\n"
    assert main([*given, "--window", "-600", "2"]) == 0
    with Image.open(folder / "out" / "images" / "p0" / "ct.dcm.center=-600,width=2.png") as picture:
        assert set(np.unique(np.asarray(picture))) <= {0, 128, 255}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to prepare: give --table or --config for a table, or --root for OmniMedVQA's folder"),
        (["--table", "q.csv", "data.root=x"], "data.root=x is for --config, not for --table; leave it out"),
        (["--root", "x", "--window", "1", "2"], "--window is for tables of DICOM files and NIfTI volumes"),
        (["data.format=medr1", "data.root=x"], "data.format=medr1 needs both"),
        (["data.format=omnimedvqa", "data.root=x"], "data.format=omnimedvqa: --config is for data.format=table"),
        (["data.format=table", "data.root=/no", "data.table.file=q.csv"], "data.root=/no is not a folder"),
        (["data.format=table", "data.root=/", "data.image_root=/no", "data.table.file=q"], "data.image_root=/no is n"),
        (["data.format=table", "data.root=/", "data.table.file=q", "--columns", "image=x"], "--columns is for --table"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", "x", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_the_same_options_for_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["image,question,answer,split"]
    for index in range(4):
        Image.new("L", (9, 9), index).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,Is it?,{('Yes', 'no', 'no', 'maybe')[index]},{('train', 'test')[index % 2]}")
    (tmp_path / "q.csv").write_text("\n".join(rows))
    given = ["--table", str(tmp_path / "q.csv"), "--out"]
    assert main([*given, str(tmp_path / "out")]) == 1
    assert "data.table.options=[yes,no], prepare --options yes no" in capsys.readouterr().err
    assert main([*given, str(tmp_path / "q.csv"), "--options", "yes", "no"]) == 1
    assert "q.csv is a file; give a new folder" in capsys.readouterr().err
    assert main([*given, str(tmp_path / "out"), "--options", "yes"]) == 1
    assert "data.table.options=['yes']: give 2 to" in capsys.readouterr().err
    assert main([*given, str(tmp_path / "out"), "--options", "yes", "no"]) == 0
    said = capsys.readouterr().out
    assert "gold: 'Yes', which is A) yes" in said
    (left_out,) = (line for line in said.splitlines() if line.startswith("left out: 1 row: answer is none of the"))
    assert left_out.endswith("(q:3)"), "all of them are named"


def test_a_published_dataset_is_prepared_by_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (9, 9), 4).save(tmp_path / "a.jpeg")
    row = {"images": ["a.jpeg"], "options": {"A": "x", "B": "y"}, "label": "B", "medical_task": "Diagnosis"}
    (tmp_path / "MM").mkdir()
    for part in ("dev", "test"):
        (tmp_path / "MM" / f"{part}.jsonl").write_text(
            json.dumps(row | {"id": part, "question": "Which?\nAnswer Choices: (A) x (B) y"})
        )
    config = REPOSITORY / "configs" / "datasets" / "medxpertqa_mm.yaml"
    given = ["--config", str(config), f"data.root={tmp_path}", f"data.image_root={tmp_path}"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "split own: train 0, validation 1, test 1" in said
    assert f"evaluate on it with --data {tmp_path / 'out'} --split own/test" in said
    prepared = DataSettings(format="prepared", root=tmp_path / "out", split="own", eval_part="test")
    (question,) = open_dataset(prepared, train_needed=False).evaluation
    assert (question.id, question.stem) == ("test", "Which?")
    with pytest.raises(ValueError, match="no training question is left"):
        open_dataset(prepared)
