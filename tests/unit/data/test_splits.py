"""Splits keep images and groups of images whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from medr1_ray.data.splits import departure, hold_out, linked, split_by_image
from medr1_ray.types import Question


def question(id_: str, modality: str = "CT", question_type: str = "Lesion Grading", image: str = "a") -> Question:
    return Question(id_, f"/data/{image}.png", "What?", ("x", "y"), 0, modality, question_type, "Chest")


def images(questions: tuple[Question, ...]) -> set[str]:
    return {question.image_path for question in questions}


def test_split_keeps_images_whole_and_every_modality_on_both_sides() -> None:
    # 20 images of CT, 2 of MRI, 1 of OCT, three questions about each.
    counts = {"CT": 20, "MRI": 2, "OCT": 1}
    questions = tuple(
        question(f"{modality}{i}:{row}", modality, image=f"{modality}{i}")
        for modality, count in counts.items()
        for i in range(count)
        for row in range(3)
    )
    division = split_by_image(questions, Path("/data"), eval_fraction=0.2, seed=0)
    train, held_out = division.train, division.evaluation
    assert division.notes == (
        "evaluation has nothing of OCT (1 images): all in one group that stays whole, and so in training; a second "
        "patient, or image, would be held out",
    )
    assert len(train) + len(held_out) == len(questions)
    assert not images(train) & images(held_out)
    # A fifth of 20 is 4; of two images one is held out; a single one is trained on.
    assert Counter(q.modality for q in held_out) == {"CT": 4 * 3, "MRI": 1 * 3}
    assert split_by_image(questions, Path("/data"), 0.2, seed=0) == division
    assert split_by_image(questions, Path("/data"), 0.2, seed=1).evaluation != held_out


def test_split_does_not_depend_on_the_order_or_on_where_the_data_lies() -> None:
    here = tuple(question(str(i), image=f"{i}") for i in range(30))
    moved = tuple(
        Question(q.id, q.image_path.replace("/data", "/mnt/x"), *list(vars(q).values())[2:]) for q in reversed(here)
    )
    held_out = {q.id for q in split_by_image(here, Path("/data"), 0.3, 0).evaluation}
    assert len(held_out) == 9
    assert {q.id for q in split_by_image(moved, Path("/mnt/x"), 0.3, 0).evaluation} == held_out


def test_hold_out_by_hand() -> None:
    fractions = {"test": 0.2, "validation": 0.1}
    singles = hold_out({str(i): 1 for i in range(100)}, fractions, seed=0)
    assert Counter(singles.values()) == {"test": 20, "validation": 10}
    assert hold_out({str(i): 1 for i in range(100)}, fractions, seed=1) != singles
    # Nothing fits: the smallest goes to the test, the next smallest to validation; one is left for training.
    assert hold_out({"a": 50, "b": 20, "c": 30}, fractions, 0) == {"b": "test", "c": "validation"}
    assert hold_out({"a": 50, "b": 20}, fractions, 0) == {"b": "test"}
    assert hold_out({"a": 50}, fractions, 0) == {}
    # A group that is too large is skipped in favour of those that fit.
    parts = hold_out({"large": 90, **{str(i): 1 for i in range(10)}}, {"test": 0.05}, 0)
    assert len(parts) == 5
    assert "large" not in parts


def test_a_part_gets_one_group_at_least_and_training_keeps_one() -> None:
    ten, three = {str(i): 1 for i in range(10)}, dict.fromkeys("abc", 1)
    assert list(hold_out(ten, {"test": 0.01}, 0).values()) == ["test"]  # a tenth of an image is rounded up
    assert len(hold_out(three, {"test": 0.9}, 0)) == 2  # 2.7 images are rounded to all three, but one is kept
    assert hold_out(three, {"test": 0.9, "validation": 0.9}, 0).keys() == hold_out(three, {"test": 0.9}, 0).keys()


def test_the_smallest_group_fills_in_only_where_none_fits() -> None:
    # The share is 30 of 100 images: either `large` takes it, or `small` comes first and leaves too little for `large`.
    sizes = {"large": 30, "small": 10, "rest": 60}
    taken = [tuple(hold_out(sizes, {"test": 0.3}, seed)) for seed in range(10)]
    assert set(taken) == {("large",), ("small",)}


def test_an_image_of_two_modalities_counts_for_the_first() -> None:
    questions = [question("1", "CT", image="a"), question("2", "MRI", image="a"), question("3", "CT", image="b")]
    questions.append(question("4", "MRI", image="c"))
    for seed in range(8):
        division = split_by_image(tuple(questions), Path("/data"), 0.5, seed)
        # One of CT's two images; MRI has only one of its own, which is trained on.
        assert images(division.evaluation) in ({"/data/a.png"}, {"/data/b.png"})
        assert "/data/c.png" in images(division.train)


def test_groups_stay_on_one_side() -> None:
    questions = tuple(question(str(i), image=f"{i}") for i in range(40))
    patients = [f"patient {i // 4}" for i in range(40)]
    division = split_by_image(questions, Path("/data"), 0.2, 0, patients)
    sides = [{int(q.id) // 4 for q in side} for side in (division.train, division.evaluation)]
    assert not sides[0] & sides[1]
    assert len(division.evaluation) == 8
    # An image of two patients ties them together; rows without a patient are their own.
    shared = (*questions, question("x", image="0"))
    division = split_by_image(shared, Path("/data"), 0.2, 0, [*patients, "patient 1"])
    assert {q.id in {str(i) for i in range(8)} | {"x"} for q in division.evaluation} in ({True}, {False})
    assert len(split_by_image(questions, Path("/data"), 0.2, 0, [None] * 40).evaluation) == 8


def test_a_modality_of_one_patient_is_told() -> None:
    questions = tuple(question(str(i), "MRI" if i < 4 else "CT", image=f"{i}") for i in range(40))
    patients = [f"patient {i // 4}" for i in range(40)]
    (note,) = split_by_image(questions, Path("/data"), 0.2, 0, patients).notes
    assert note.startswith("evaluation has nothing of MRI (4 images): all in one group")
    assert split_by_image(questions[4:], Path("/data"), 0.2, 0, patients[4:]).notes == ()


def test_linked_names() -> None:
    assert linked([("a", "1"), ("b", "2"), ("c", "2"), ("b", "1"), ("d", "3")]) == ["1", "1", "1", "1", "3"]


def test_a_part_far_from_its_fraction_is_told_with_the_reason() -> None:
    assert split_by_image(tuple(question(str(i), image="a") for i in range(9)), Path("/data"), 0.2, 0).departure == (
        "evaluation has 0 of 1 images instead of 20%; the images are in 1 group that stay whole, the largest (a.png) "
        "has 1"
    )
    sizes, test = {"a": 60, "b": 30, "c": 10}, {"test": 0.2}
    assert departure(sizes, {"c": "test"}, test, 1) is None
    assert departure(sizes, {"b": "test"}, test, 1) is None
    assert "test has 60 of 100 images instead of 20%;" in str(departure(sizes, {"a": "test"}, test, 1))
    both = str(departure(sizes, {}, {"test": 0.2, "validation": 0.05}, 3))
    assert both.startswith("test has 0 of 100 images instead of 20%, validation has 0 of 100 images instead of 5%; ")
    assert both.endswith("has 60, and each of 3 modalities is divided on its own")
    assert departure({str(i): 1 for i in range(4)}, {"0": "test"}, {"test": 0.05}, 1) is None  # one image is the least
