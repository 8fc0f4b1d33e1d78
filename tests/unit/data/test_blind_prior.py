"""The blind prior, against counts by hand and against the released splits."""

from pathlib import Path

import pytest

from medr1_ray.data.blind_prior import BlindPrior
from medr1_ray.data.readers.medr1 import read_medr1_rows
from medr1_ray.types import Question


def question(options: str, answer: int) -> Question:
    return Question("q", "/i.png", "What?", tuple(options.split("|")), answer, "CT", "Lesion Grading", "d")


TRAIN = [question("lung|liver|heart", 0), question("Lung.|liver|spleen", 0), question("liver|spleen", 0)]


@pytest.mark.parametrize(
    ("options", "answer", "credit"),
    [
        # lung (2 + .25) / 3 = .75; liver (1 + .25) / 4 = .3125; spleen .25 / 3; heart .25 / 2; unseen .25
        ("liver|LUNG", 1, 1.0),
        ("liver|LUNG", 0, 0.0),
        ("liver |kidney", 0, 1.0),
        ("liver| Lung . ", 1, 1.0),
        ("heart|kidney", 1, 1.0),
        ("kidney|aorta|spleen", 0, 0.5),
        ("kidney|aorta|spleen", 2, 0.0),
        ("kidney|aorta|bone|vein", 3, 0.25),
    ],
)
def test_credit_by_hand(options: str, answer: int, credit: float) -> None:
    assert BlindPrior.fit(TRAIN).credit(question(options, answer)) == credit


def test_accuracy_is_the_mean_credit_whatever_the_order_of_the_options() -> None:
    prior = BlindPrior.fit(TRAIN)
    assert prior.accuracy([question("liver|lung", 1), question("kidney|aorta", 0)]) == 0.75
    assert prior.accuracy([question("lung|liver", 0), question("aorta|kidney", 1)]) == 0.75
    with pytest.raises(ValueError, match="no questions"):
        prior.accuracy([])


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("CT(Computed Tomography)", 99.0),
        ("X-Ray", 94.6),
        ("ultrasound", 83.4),
        ("Dermoscopy", 95.1),
        ("Fundus Photography", 94.9),
        ("OCT (Optical Coherence Tomography", 100.0),
        ("Microscopy Images", 98.6),
    ],
)
def test_released_splits(shared_data: Path, name: str, percent: float) -> None:
    """Compare with the accuracies that an independent count of the same prior gave."""
    train, test = (
        read_medr1_rows(
            shared_data / "medr1_splits", f"modality/{part}/{name}_{part}.json", images_needed=False
        ).questions
        for part in ("train", "test")
    )
    assert 100 * BlindPrior.fit(train).accuracy(test) == pytest.approx(percent, abs=0.06)
