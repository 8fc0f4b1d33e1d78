"""Canonical names of modalities and question types."""

from __future__ import annotations

import pytest

from medr1_ray.data.questions import canonical_modality, canonical_question_type


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("CT(Computed Tomography)", "CT"),
        ("MR (Mag-netic Resonance Imaging)", "MRI"),
        ("X-Ray", "X-Ray"),
        ("ultrasound", "Ultrasound"),
        ("Dermoscopy", "Dermoscopy"),
        ("Fundus Photography", "Fundus Photography"),
        ("OCT (Optical Coherence Tomography", "OCT"),
        ("Microscopy Images", "Microscopy"),
        ("unknown", "Unknown"),
        (" Endoscopy ", "Endoscopy"),
    ],
)
def test_modality_of_every_spelling_in_the_files(spelling: str, name: str) -> None:
    assert canonical_modality(spelling) == name


def test_question_type_names_ignore_case_and_spaces() -> None:
    assert canonical_question_type("Other Biological Attributes") == "Other Biological Attributes"
    assert canonical_question_type("lesion  grading") == "Lesion Grading"
    assert canonical_question_type("X-Ray") == "X-Ray"
