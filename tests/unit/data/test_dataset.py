"""Opening a dataset: the filters, the evaluation sample, what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import DataSettings, TableColumns, TableSettings
from medr1_ray.data import dataset as module
from medr1_ray.data.dataset import Dataset, open_dataset, stratified_sample
from medr1_ray.types import Question


def question(id_: str, modality: str = "CT", question_type: str = "Lesion Grading", image: str = "a") -> Question:
    return Question(id_, f"/data/{image}.png", "What?", ("x", "y"), 0, modality, question_type, "Chest")


def images(questions: tuple[Question, ...]) -> set[str]:
    return {question.image_path for question in questions}


def test_stratified_sample_takes_strata_in_turn() -> None:
    questions = tuple(
        [question(f"ct{i}") for i in range(50)]
        + [question("mr0", "MRI"), question("mr1", "MRI")]
        + [question(f"dd{i}", question_type="Disease Diagnosis") for i in range(3)]
    )
    sample = stratified_sample(questions, wanted=8, seed=0)
    # Two rounds of one question per stratum exhaust MRI; the other two strata fill the rest: 3 + 3 + 2.
    assert Counter((q.modality, q.question_type) for q in sample) == {
        ("CT", "Disease Diagnosis"): 3,
        ("CT", "Lesion Grading"): 3,
        ("MRI", "Lesion Grading"): 2,
    }
    assert len(set(sample)) == 8
    assert stratified_sample(questions, 8, seed=0) == sample
    assert stratified_sample(questions, 8, seed=1) != sample
    assert len(stratified_sample(questions, 1000, seed=0)) == 55


def test_strata_and_their_questions_come_in_random_order() -> None:
    one_stratum = tuple(question(f"q{i}") for i in range(50))
    samples = [{q.id for q in stratified_sample(one_stratum, 5, seed)} for seed in range(3)]
    assert samples[0] != samples[1] != samples[2]
    two_strata = (question("a"), question("b", "MRI"))
    assert {q.id for seed in range(10) for q in stratified_sample(two_strata, 1, seed)} == {"a", "b"}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    root = tmp_path_factory.mktemp("data") / "phantoms"
    return DataSettings(format="phantoms", root=root, phantom_images=96, eval_questions=50, image_size=84)


def test_phantoms_are_written_and_split(phantoms: DataSettings) -> None:
    dataset = open_dataset(phantoms)
    assert dataset.dropped == ()
    assert len(dataset.evaluation) == 50
    # A fifth of the twelve images of each modality, rounded, is two; fifty questions reach all of the 40 strata.
    assert len(images(dataset.train)) == 8 * 10
    assert dataset.shared_images == 0
    assert len({q.modality for q in dataset.evaluation}) == 8
    assert len({q.question_type for q in dataset.evaluation}) == 5
    assert open_dataset(phantoms) == dataset
    assert "dropped" not in dataset.description


def test_a_folder_of_phantoms_that_holds_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "seed-0-images-9").mkdir()
    (tmp_path / "seed-0-images-9" / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"data\.root={tmp_path}: out is .*not an empty directory"):
        open_dataset(DataSettings(format="phantoms", root=tmp_path, phantom_images=9))


def test_filters(phantoms: DataSettings) -> None:
    everything = open_dataset(phantoms)
    narrow = open_dataset(
        phantoms.model_copy(
            update={
                "modalities": ("MRI", "OCT"),
                "question_types": ("Modality Recognition",),
            }
        )
    )
    assert {(q.modality, q.question_type) for q in narrow.train} == {
        ("MRI", "Modality Recognition"),
        ("OCT", "Modality Recognition"),
    }
    # A filter does not move images from one side to the other.
    assert set(narrow.train) <= set(everything.train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"modalities": ("Xray",)},
            r"data\.modalities=\['Xray'\]: 'Xray' is not a modality of the data; it has CT, .*X-Ray",
        ),
        (
            {"question_types": ("Grading",)},
            r"data\.question_types=.*'Grading' is not a question type of the data; it has .*Lesion Grading",
        ),
        ({"modalities": ("Unknown",)}, r"'Unknown' is not a modality of the data"),
        (
            {"sampling_weights": {"PET": 2.0}},
            r"data\.sampling_weights.*'PET' is not .*data\.sampling_weights={} weighs all",
        ),
        ({"phantom_images": 9, "modalities": ("MRI",)}, "no evaluation question.*; or raise data.phantom_images=9"),
        ({"phantom_images": 8}, "no evaluation question is left.*evaluation has 0 of 8 images instead of 20%"),
    ],
)
def test_wrong_settings(phantoms: DataSettings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(phantoms.model_copy(update=change))


@pytest.mark.parametrize("seed", range(4))
def test_the_fewest_phantoms_that_settings_allow_have_both_sides(tmp_path: Path, seed: int) -> None:
    dataset = open_dataset(DataSettings(format="phantoms", root=tmp_path, phantom_images=9, seed=seed))
    assert dataset.train
    assert dataset.evaluation


def test_missing_or_empty_root(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere is not a folder"):
        open_dataset(DataSettings(format="omnimedvqa", root=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no annotation files"):
        open_dataset(DataSettings(format="omnimedvqa", root=tmp_path))


def test_medr1_files_that_share_images_are_reported(tmp_path: Path) -> None:
    def row(image: str) -> dict[str, str]:
        return {"image": f"I/{image}", "problem": "What? A)x, B)y", "solution": "<answer> A </answer>"}

    (tmp_path / "I").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "I" / name).touch()
    (tmp_path / "CT_train.json").write_text(json.dumps([row("a.png"), row("b.png"), row("gone.png")]))
    (tmp_path / "CT_test.json").write_text(json.dumps([row("b.png"), row("c.png")]))
    dataset = open_dataset(
        DataSettings(format="medr1", root=tmp_path, train_file="CT_train.json", eval_file="CT_test.json")
    )
    assert (len(dataset.train), len(dataset.evaluation), dataset.shared_images) == (2, 2, 1)
    assert "2 questions on 2 images, 1 of them also in training" in dataset.description
    assert "dropped: 1 rows: image file not found 1" in dataset.description


def test_two_questions_with_one_id_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(format="omnimedvqa", root=tmp_path)
    train, other = (question("a"), question("b", image="b")), question("a", image="c")
    monkeypatch.setattr(module, "_read", lambda _: module._Sides(train, held_out, ()))
    said = r"the id 'a' is that of two questions: 'What\?' about /data/a\.png and 'What\?' about /data/{}\.png; rename"
    held_out = (other,)
    with pytest.raises(ValueError, match=said.format("c")):
        open_dataset(settings)
    held_out = (train[0], train[0])
    with pytest.raises(ValueError, match=said.format("a")):
        open_dataset(settings)
    # One that is on both sides, as where both files are the same, is one question.
    medr1 = DataSettings(format="medr1", root=tmp_path, train_file="a", eval_file="a")
    held_out = train
    assert open_dataset(medr1).shared_images == 2


def test_realmini(shared_data: Path) -> None:
    dataset: Dataset = open_dataset(DataSettings(format="omnimedvqa", root=shared_data / "realmini"))
    assert dataset.shared_images == 0
    assert len(dataset.train) + len(dataset.evaluation) == 395
    assert {q.modality for q in dataset.evaluation} == {
        "CT",
        "MRI",
        "X-Ray",
        "Ultrasound",
        "Fundus Photography",
        "Microscopy",
    }


def table(folder: Path, rows: int = 20, **settings: Any) -> DataSettings:
    """Write a table of images with a question each, two of a patient; the fields of `settings` are those of `data`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["image,question,A,B,answer,patient,modality"]
    for index in range(rows):
        (folder / "images" / f"{index}.png").touch()
        lines.append(f"{index}.png,What {index}?,x,y,{'ab'[index % 2]},{index // 2},PET")
    (folder / "x.csv").write_text("\n".join(lines))
    given: dict[str, Any] = {"format": "table", "root": folder, "table": {"file": "x.csv"}}
    return DataSettings(**(given | {"image_root": folder / "images"} | settings))


def test_a_table_is_split_by_its_groups(tmp_path: Path) -> None:
    dataset = open_dataset(table(tmp_path))
    assert (len(dataset.train), len(dataset.evaluation)) == (16, 4)
    patients = [{int(q.id.split(":")[1]) // 2 for q in side} for side in (dataset.train, dataset.evaluation)]
    assert not patients[0] & patients[1]
    assert "group = patient" in dataset.description
    assert "train by modality: PET 16" in dataset.description
    assert len(open_dataset(table(tmp_path, modalities=["PET"], sampling_weights={"PET": 2})).train) == 16
    by_image = open_dataset(table(tmp_path, table={"file": str(tmp_path / "x.csv"), "columns": {"group": ""}}))
    assert len(by_image.evaluation) == 4
    assert "group" not in by_image.description


def test_a_table_with_parts(tmp_path: Path) -> None:
    settings = table(tmp_path)
    text = (tmp_path / "x.csv").read_text().replace("patient", "split").splitlines()
    parts = ["train"] * 10 + ["validation"] * 6 + ["test"] * 4
    rows = [line.rsplit(",", 2) for line in text[1:]]
    lines = [text[0], *(f"{row[0]},{part},{row[2]}" for row, part in zip(rows, parts, strict=True))]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    assert [len(side) for side in (open_dataset(settings).train, open_dataset(settings).evaluation)] == [10, 6]
    assert len(open_dataset(settings.model_copy(update={"eval_part": "test"})).evaluation) == 4
    (tmp_path / "x.csv").write_text("\n".join(line for line in lines if ",validation," not in line))
    with pytest.raises(ValueError, match=r"data\.eval_part=validation: .*columns\.split=\) has no .* train 10, "):
        open_dataset(settings)


def test_many_dropped_rows_are_loud(tmp_path: Path) -> None:
    settings = table(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    said = open_dataset(settings).description
    assert "dropped: 1 rows: image file not found 1; the first is row 1 (from 0) of x" in said
    for index in range(5, 9):
        (tmp_path / "images" / f"{index}.png").unlink()
    assert "WARNING: many rows dropped: 5 rows: image file not found 5" in open_dataset(settings).description


def test_rows_that_the_settings_leave_out_are_no_warning(tmp_path: Path) -> None:
    settings = table(tmp_path, table={"file": "x.csv", "where": {"answer": "A"}})
    said = open_dataset(settings).description
    assert "dropped: 10 rows: answer is not A 10; the first is row 1 (from 0) of x" in said
    assert "WARNING" not in open_dataset(settings).description


def test_one_group_cannot_be_split(tmp_path: Path) -> None:
    settings = table(tmp_path)
    header, *lines = (tmp_path / "x.csv").read_text().splitlines()
    (tmp_path / "x.csv").write_text("\n".join([f"{header},study", *(f"{line},first" for line in lines)]))
    columns = TableColumns(group="study")
    one = settings.model_copy(update={"table": TableSettings(file="x.csv", columns=columns)})
    with pytest.raises(
        ValueError, match=r"no evaluation question is left.*the largest \(group first\) has 20"
    ):
        open_dataset(one)


def test_what_file_names_tell_is_said_and_not_used(tmp_path: Path) -> None:
    settings = table(tmp_path, rows=20)
    text = (tmp_path / "x.csv").read_text().replace("patient", "note")
    for index in range(20):
        (tmp_path / "images" / f"{index}.png").rename(tmp_path / "images" / f"img1_{index:04}.png")
        text = text.replace(f"\n{index}.png", f"\nimg1_{index:04}.png")
    (tmp_path / "x.csv").write_text(text)
    dataset = open_dataset(settings)
    assert (len(dataset.train), len(dataset.evaluation)) == (16, 4)
    assert "by their file names some may belong together: 20 images in 1 group, the largest img1 with 20" in (
        dataset.description
    )
    with pytest.raises(ValueError, match=r"data\.image_root=.*nowhere is not a folder"):
        open_dataset(settings.model_copy(update={"image_root": tmp_path / "nowhere"}))


def test_images_in_the_table_itself_are_prepared_first(tmp_path: Path) -> None:
    from datasets import Dataset as Saved

    columns = {"image": [{"bytes": b"1"}], "question": ["Which?"], "A": ["x"], "B": ["y"], "answer": ["A"]}
    Saved.from_dict(columns).to_parquet(tmp_path / "x.parquet")
    settings = table(tmp_path, table={"file": "x.parquet"})
    with pytest.raises(ValueError, match=r"data\.prepare data\.format=table .*x\.parquet.* --out DIR, .*=prepared"):
        open_dataset(settings)


def test_scans_are_prepared_first(tmp_path: Path) -> None:
    settings = table(tmp_path)
    (tmp_path / "images" / "3.dcm").touch()
    text = (tmp_path / "x.csv").read_text()
    (tmp_path / "x.csv").write_text(text.replace("3.png", "3.dcm#frame=2"))
    with pytest.raises(
        ValueError,
        match=r"x\.csv: 1 rows name DICOM files or NIfTI volumes, e\.g\. .*3\.dcm#frame=2; .*data\.prepare ",
    ):
        open_dataset(settings)


def test_a_benchmark_has_no_training_part(tmp_path: Path) -> None:
    settings = table(tmp_path)
    text = (tmp_path / "x.csv").read_text().splitlines()
    for name, lines in (("test", text[:-1]), ("validation", [text[0], text[-1]])):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    both = TableSettings(file=("test.csv", "validation.csv"))
    settings = settings.model_copy(update={"table": both, "eval_part": "test"})
    with pytest.raises(ValueError, match="no training question is left"):
        open_dataset(settings)
    dataset = open_dataset(settings, train_needed=False)
    assert (len(dataset.train), len(dataset.evaluation)) == (0, 19)
    assert "train by" not in dataset.description
