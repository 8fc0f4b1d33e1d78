"""What a split's held-out questions share with training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from medr1_ray.data.prepare.leakage import Leakage, leakage
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.medr1 import read_medr1_rows
from medr1_ray.types import Question
from tests.unit.data.prepare.manifest_rows import row


def test_leakage_by_hand() -> None:
    train = [
        row("a", "v1_1", perceptual_hash="00000000000000ff"),
        row("b", "plain", perceptual_hash="ffff000000000000", options=("y", "z"), gold_letter="B", gold_text="z"),
    ]
    held_out = [
        row("c", "v1_2", perceptual_hash="000000000000ffff"),  # the volume and the prompt of a; 8 bits from it
        row("d", "new", perceptual_hash="0000000001ffffff", stem="Which?"),  # 17 bits from a
        row("e", "copy", image_hash="hash of plain", perceptual_hash="ffff000000000000", options=("y", "w", "u", "v")),
        row("f", "g", perceptual_hash="aaaaaaaaaaaaaaaa", options=("z", "y"), gold_letter="B", gold_text="y"),
    ]
    # The prior: x 1.25 / 2, y .25 / 3, z 1.25 / 2, others .25 / 1. It is right on c and d; gold y loses in e and f.
    assert leakage(train, held_out) == Leakage(
        questions=4,
        shared_image=0.25,
        near_duplicate=0.5,
        shared_scan=0.25,
        repeated_prompt=0.25,
        blind_prior=0.5,
        chance=(0.5 + 0.5 + 0.25 + 0.5) / 4,
    )
    assert leakage(train, []) is leakage([], held_out) is None
    unread = leakage(train, [dataclasses.replace(held_out[0], perceptual_hash=None)])
    assert unread is not None
    assert unread.near_duplicate is None


@pytest.mark.parametrize(("bits", "near"), [(8, 1.0), (9, 0.0)])
def test_images_that_differ_in_more_than_eight_bits_are_not_near(
    bits: int, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = [row(name, perceptual_hash=f"{number:016x}") for number, name in enumerate("abc", 2**40)]
    held_out = [row(name, perceptual_hash=f"{2**40 ^ (2**bits - 1) << 8:016x}") for name in "de"]
    found = leakage(train[:1], held_out)
    assert found is not None
    assert found.near_duplicate == near
    # Compared in pieces of one hash at a time, which bound the memory, as in one.
    monkeypatch.setattr("medr1_ray.data.prepare.leakage._BLOCK", 1)
    pieces = leakage(train[:1], [*held_out, row("f", perceptual_hash=f"{2**40:016x}")])
    assert pieces is not None
    assert pieces.near_duplicate == pytest.approx((2 * near + 1) / 3)


def test_leakage_is_said_in_a_line() -> None:
    leak = Leakage(200, 0.326, 0.5, 0.25, 0.033, 0.946, 0.25)
    assert leak.description == (
        "200 questions: image in training 32.6%, near-duplicate 50.0%, patient or volume 25.0%, prompt 3.3%; "
        "blind prior 94.6%, chance 25.0%"
    )
    assert "near-duplicate unknown" in dataclasses.replace(leak, near_duplicate=None).description


# Percent of the test questions whose image, and whose exact prompt, is in Med-R1's training file.
RELEASED = {
    "CT(Computed Tomography)": (13.4, 20.1),
    "X-Ray": (32.6, 3.3),
    "ultrasound": (2.1, 0.1),
    "Dermoscopy": (18.5, 11.3),
    "Fundus Photography": (9.7, 15.0),
    "OCT (Optical Coherence Tomography": (29.8, 3.2),
    "Microscopy Images": (27.7, 6.0),
}


@pytest.mark.parametrize("name", RELEASED)
def test_leakage_of_the_released_splits(shared_data: Path, name: str) -> None:
    """Compare with an independent count: 2-33 % of a modality's test reuse a training image, up to 20 % a prompt."""

    def rows_of(part: str) -> list[ManifestRow]:
        file = f"modality/{part}/{name}_{part}.json"
        questions = read_medr1_rows(shared_data / "medr1_splits", file, images_needed=False).questions
        return [of_released(question) for question in questions]

    def of_released(question: Question) -> ManifestRow:
        return ManifestRow(
            question.id,
            "",
            0,
            **{name: getattr(question, name) for name in ("dataset", "modality", "question_type", "stem", "options")},
            gold_letter=question.gold_letter,
            image_path=question.image_path,
            image_hash=question.image_path,
            scan=question.image_path,
        )

    leak = leakage(rows_of("train"), rows_of("test"))
    assert leak is not None
    assert leak.near_duplicate is None
    assert (100 * leak.shared_image, 100 * leak.repeated_prompt) == pytest.approx(RELEASED[name], abs=0.06)
