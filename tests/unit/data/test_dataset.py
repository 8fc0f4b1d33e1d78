"""Opening a dataset: the filters, the evaluation sample, what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import DataSettings
from medr1_ray.data.dataset import Dataset, open_dataset, stratified_sample
from medr1_ray.types import Question


def question(
    id_: str, modality: str = "CT", question_type: str = "Lesion Grading", image: str = "a"
) -> Question:
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
    (tmp_path / "seed-0-images-8").mkdir()
    (tmp_path / "seed-0-images-8" / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"data\.root={tmp_path}: out is .*not an empty directory"):
        open_dataset(DataSettings(format="phantoms", root=tmp_path, phantom_images=8))


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
        ({"modalities": ("Xray",)}, r"data\.modalities: 'Xray' is unknown; use .*X-Ray"),
        (
            {"question_types": ("Grading",)},
            r"data\.question_types: 'Grading' is unknown; use .*Lesion Grading",
        ),
        ({"modalities": ("Unknown",)}, r"no training question is left.*data\.modalities=\['Unknown'\]"),
        ({"phantom_images": 8}, "no evaluation question is left"),
    ],
)
def test_wrong_settings(phantoms: DataSettings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(phantoms.model_copy(update=change))


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


def test_a_wrong_name_in_the_sampling_weights_shows_before_anything_is_read(tmp_path: Path) -> None:
    settings = DataSettings(format="omnimedvqa", root=tmp_path / "nowhere", sampling_weights={"Grading": 2.0})
    with pytest.raises(ValueError, match=r"sampling_weights: 'Grading' is unknown; use names from .*Lesion Grading"):
        open_dataset(settings)
