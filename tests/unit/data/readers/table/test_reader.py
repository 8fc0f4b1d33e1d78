"""Rows of a table become questions, or are dropped for a reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import TableSettings
from medr1_ray.data.readers.rows import dropped_by_reason
from medr1_ray.data.readers.table.reader import Table, TableReader

HEADER = ["image", "question", "A", "B", "C", "answer", "modality", "patient", "split"]
GOOD = ["a.png", "Which?", "CT", "MRI", "PET", "b", "PET", "7", "train"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "outside.png").touch()
    return tmp_path


def reader(folder: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER, **given: Any) -> TableReader:
    with (folder / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return TableReader(TableSettings(file="x.csv", **given), folder, folder / "images", images_needed=True)


def changed(**cells: Any) -> list[Any]:
    return [cells.get(name, cell) for name, cell in zip(HEADER, GOOD, strict=True)]


def read(folder: Path, *rows: Sequence[Any], **given: Any) -> Table:
    return reader(folder, rows, **given).read()


def test_a_row_becomes_a_question(folder: Path) -> None:
    table = read(folder, GOOD, changed(modality="mr", patient="", split="dev", image=folder / "images" / "b.png"))
    first, second = table.rows
    question = first.question
    assert (question.id, question.image_path) == ("x:0", str(folder / "images" / "a.png"))
    assert (question.stem, question.options, question.answer) == ("Which?", ("CT", "MRI", "PET"), 1)
    # A modality that is none of the eight keeps its name.
    assert (question.modality, question.question_type, question.dataset) == ("PET", "Unknown", "x")
    assert (first.group, first.part, first.file, first.number) == ("7", "train", "x", 0)
    # Absolute paths are taken below the root of the images.
    assert (second.question.image_path, second.question.modality) == (str(folder / "images" / "b.png"), "MRI")
    assert (second.group, second.part) == (None, "validation")
    assert (table.has_parts, table.has_groups, table.dropped) == (True, True, ())
    assert table.understood[1] == "answers: letters"
    assert "group = patient" in table.understood[0]


def test_rows_that_are_no_questions_are_counted_by_reason(folder: Path) -> None:
    reasons = {
        "no image": changed(image=""),
        "several images": changed(image="a.png; b.png"),
        "image file not found": changed(image="c.png"),
        "image path leads out of the dataset's folder": changed(image="../outside.png"),
        "image path names a frame, slice or window of a file that is neither DICOM nor NIfTI": changed(
            image="a.png#frame=1"
        ),
        "no question": changed(question=" "),
        "a letter is missing among the options": changed(B=""),
        "fewer than two options": changed(B="", C=""),
        "no answer": changed(answer=""),
        "answer is none of the options": changed(answer="D"),
        "gold option occurs twice": changed(A="MRI"),
        "question holds characters that no text has": changed(question="a\0b"),
        "answer would be read in a way that too few rows need": changed(answer="CT"),
    }
    table = read(folder, GOOD, *reasons.values())
    assert dropped_by_reason(table.dropped) == dict.fromkeys(reasons, 1)
    assert len(table.rows) == 1


def test_no_image_is_outside_of_the_images_folder(folder: Path) -> None:
    (folder / "images" / "link.png").symlink_to(folder / "outside.png")
    outside = [changed(image=image) for image in ("/etc/passwd", folder / "outside.png", "b/../../outside.png")]
    assert dropped_by_reason(read(folder, GOOD, *outside, changed(image="link.png")).dropped) == {
        "image path leads out of the dataset's folder": 3,
        "image is a link that leads out of the dataset's folder": 1,
    }


def test_ids_must_not_repeat(folder: Path) -> None:
    rows = [changed(patient=name) for name in "112"]
    table = read(folder, *rows, columns={"id": "patient", "group": ""})
    assert [row.question.id for row in table.rows] == ["2"]
    assert dropped_by_reason(table.dropped) == {"id occurs twice": 2}
    assert not table.has_groups


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([], {}, r"x\.csv: none of its 0 rows became a question: it has no rows"),
        (
            [changed(image="c.png")] * 2,
            {},
            r"none of its 2 rows became a question: image file not found 2 .*data\.image_root",
        ),
        (
            [changed(answer="1"), changed(answer="2")],
            {},
            r"data\.table\.answers=null: .*numbers from 0 or numbers from 1.*index_from_1",
        ),
        (
            [changed(A="yes", B="no", C="", answer=answer) for answer in "10"],
            {},
            r"data\.table\.answers=null: .*: the answers can be numbers from 0 or 1 for yes and 0 for no: '1' would be "
            r"'no' or 'yes'; set it .* to .*index_from_0, .*yes_is_1",
        ),
        (
            [changed(answer=answer) for answer in "10"],
            {"options": ("yes", "no")},
            "'1' would be 'no' or 'yes'",
        ),
        ([changed(split="fold 3")], {}, r"columns\.split=split: .*'fold 3' .*is no part; use train"),
    ],
)
def test_tables_that_are_refused(folder: Path, rows: list[Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder, *rows, **given)


def test_numbers_are_read_as_told(folder: Path) -> None:
    rows = [changed(answer="1"), changed(answer="2")]
    assert [row.question.answer for row in read(folder, *rows, answers="index_from_1").rows] == [0, 1]
    assert [row.question.answer for row in read(folder, *rows, answers="index_from_0").rows] == [1, 2]


def test_labels_of_yes_and_no_are_read_as_told(folder: Path) -> None:
    rows = [changed(A="yes", B="no", C="", answer=answer) for answer in "10"]
    assert [row.question.answer for row in read(folder, *rows, answers="yes_is_1").rows] == [0, 1]
    assert [row.question.answer for row in read(folder, *rows, answers="index_from_0").rows] == [1, 0]


def test_a_patient_is_the_same_in_every_file(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (folder / "tables").mkdir()
    common = {"image": ["a.png"] * 3, "question": ["?"] * 3, "A": [1, 2, 3], "B": [4, 5, 6]}
    for name, numbers in (("whole", [12, 13, 14]), ("gap", [12.0, None, 12.5])):
        table = pyarrow.table(common | {"answer": [float(n) for n in common["A"]], "patient": numbers})
        pyarrow.parquet.write_table(table, folder / "tables" / f"{name}.parquet")
    settings = TableSettings(file="tables", answers="text")
    table = TableReader(settings, folder, folder / "images", images_needed=True).read()
    assert [row.group for row in table.rows] == ["12", None, "12.5", "12", "13", "14"]
    assert {row.question.answer for row in table.rows} == {0}
    # pandas writes them so into CSV.
    rows = [changed(patient=name) for name in ("12", "12.0", "1.5", "a.0")]
    assert [row.group for row in read(folder, *rows).rows] == ["12", "12", "1.5", "a.0"]


def test_cells_that_are_no_texts(folder: Path) -> None:
    good = {"image": "a.png", "question": "?", "options": ["CT", "MRI"], "answer": "B", "patient": "1", "kind": "x"}
    bad: list[dict[str, Any]] = [
        {"question": {"en": "Which?"}},
        {"question": ["Which", "one?"]},
        {"answer": ["A", "B"]},
        {"image": {"path": "a.png"}},
        {"patient": ["1", "2"]},
        {"kind": ["x", "y"]},
    ]
    rows = [good | {"question": ["Which?"], "kind": ["x"]}, *(good | changes for changes in bad)]
    (folder / "x.json").write_text(json.dumps(rows))
    settings = TableSettings(file="x.json", where={"kind": "x"})
    table = TableReader(settings, folder, folder / "images", images_needed=True).read()
    assert [row.question.stem for row in table.rows] == ["Which?"]
    assert dropped_by_reason(table.dropped) == {
        "question is no text": 2,
        "answer is no text": 1,
        "image is no text": 1,
        "group is no text": 1,
        "kind is not x": 1,
    }


def test_the_preview_shows_rows_before_all_are_read(folder: Path) -> None:
    opened = reader(folder, [GOOD, changed(answer="3"), changed(question="")] + [changed(answer="0")] * 100)
    lines = opened.preview(3)
    assert lines[0].startswith("columns: image = image, question = question, options = A, B, C, answer = answer")
    assert lines[1:5] == [
        "row 0: a.png",
        "  question: Which?",
        "  options: A) CT; B) MRI; C) PET",
        "  gold: 'b', which is B) MRI",
    ]
    assert lines[9] == "row 2: left out: no question"
    (missing,) = reader(folder, [changed(image="no.png")]).preview(1)[1:2]
    assert missing == f"row 0: no.png (image file not found; images are looked for below {folder / 'images'})"
    assert reader(folder, [changed(answer="1")] * 9).preview(2)[-1] == (
        "answers: of these rows alone, the answers can be numbers from 0 or numbers from 1: '1' would be 'MRI' or 'CT'"
    )


def test_options_in_the_question(folder: Path) -> None:
    table = reader(folder, [["a.png", "Which? A) CT B) MRI", "B) MRI"]], ["image", "question", "answer"]).read()
    assert (table.rows[0].question.stem, table.rows[0].question.answer) == ("Which?", 1)


def test_rows_are_chosen_by_their_values(folder: Path) -> None:
    header = ["image", "question", "answer", "kind", "image_2"]
    rows = [
        ["a.png", "Is it?", "Yes ", " closed", ""],
        ["a.png", "Is it?", "no", "OPEN", ""],
        ["a.png", "Is it?", "no", "CLOSED", "b.png"],
        ["a.png", "Is it?", "maybe", "CLOSED", " "],
    ]
    chosen = {"options": ("yes", "no"), "where": {"kind": "CLOSED", "image_2": ""}}
    table = reader(folder, rows, header, **chosen).read()
    assert [(row.question.options, row.question.answer) for row in table.rows] == [(("yes", "no"), 0)]
    assert dropped_by_reason(table.dropped) == {
        "kind is not CLOSED": 1,
        "image_2 is not empty": 1,
        "answer is none of the options": 1,
    }
    assert "options = yes or no" in table.understood[0]
    with pytest.raises(ValueError, match=r"data\.table\.where\.knid=CLOSED is about no column of .*; it has image, "):
        reader(folder, rows, header, where={"knid": "CLOSED"})


def test_questions_are_cut_where_told(folder: Path) -> None:
    rows = [changed(question="Which? Choices: (A) x (B) y"), changed(question="Choices: (A) x"), GOOD]
    table = read(folder, *rows, question_until="Choices:")
    assert [row.question.stem for row in table.rows] == ["Which?", "Which?"]
    assert dropped_by_reason(table.dropped) == {"no question": 1}


def test_frames_and_slices_are_named_after_the_path(folder: Path) -> None:
    for name in ("scan.dcm", "volume.nii.gz"):
        (folder / "images" / name).touch()
    good = ("scan.dcm#frame=3", "volume.nii.gz#slice=4,axis=0,center=40.125,width=400")
    table = read(folder, *(changed(image=image) for image in (*good, "scan.dcm#fram=3", "b.nii#slice=1")))
    assert [row.question.image_path for row in table.rows] == [str(folder / "images" / image) for image in good]
    assert dropped_by_reason(table.dropped) == {
        "what follows # in the image path is not like frame=3 or slice=40,axis=2": 1,
        "image file not found": 1,
    }


def test_several_files_are_one_table(folder: Path) -> None:
    for name in ("one/train", "two/test", "two/others"):
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, GOOD])
    settings = TableSettings(file=("one", "two/test.csv"), columns={"split": ""})  # type: ignore[arg-type]
    table = TableReader(settings, folder, folder / "images", images_needed=True).read()
    assert [(row.question.id, row.part) for row in table.rows] == [("one/train:0", "train"), ("two/test:0", "test")]
    # Files of a pattern that have the same name are told apart by their folders.
    pattern = TableReader(TableSettings(file="*/t*.csv"), folder, folder / "images", images_needed=True)
    assert [file.name for file in pattern.files] == ["one/train", "two/test"]


def test_files_with_different_columns_are_refused(folder: Path) -> None:
    (folder / "tables").mkdir()
    (folder / "tables" / "a.csv").write_text("image,question,answer\n")
    (folder / "tables" / "b.csv").write_text("image,question\n")
    with pytest.raises(ValueError, match=r"b has the columns image, question, but a has image, question, answer"):
        TableReader(TableSettings(file="tables"), folder, folder, images_needed=True)


def test_images_in_the_table_itself(folder: Path) -> None:
    from datasets import Dataset

    cells = [{"bytes": b"one"}, {"bytes": None}, {"bytes": b"two"}]
    data = {"image": cells, "question": ["Which?"] * 3, "options": [["x", "y"], ["x", "y"], ["x"]], "answer": [0, 1, 0]}
    Dataset.from_dict(data).to_parquet(folder / "x.parquet")
    opened = TableReader(TableSettings(file="x.parquet"), folder, folder, images_needed=True)
    assert opened.embedded
    assert "an image in the table" in opened.preview(1)[1]
    table = opened.read()
    assert [(row.question.image_path, row.question.answer) for row in table.rows] == [("", 0), ("", 1)]
    first, second = opened.images({("x", 0), ("x", 1)})
    assert first == ("x", 0, b"one")
    assert str(second[2]) == "no image"
