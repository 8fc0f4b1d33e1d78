"""Facts are uniform, consistent and said in words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medr1_ray.data.phantoms import (
    PhantomFacts,
    describe,
    random_facts,
)


def test_facts_are_uniform_and_independent() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_facts(rng, "CT") for _ in range(4800)]
    assert abs(sum(facts.lesion for facts in drawn) / 4800 - 0.5) < 0.03
    cells = Counter((facts.anatomy, facts.grade, facts.location) for facts in drawn if facts.lesion)
    assert len(cells) == 24
    assert all(60 <= count <= 140 for count in cells.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"modality": "PET", "anatomy": "Chest", "lesion": False},
        {"modality": "CT", "anatomy": "Brain", "lesion": False},
        {"modality": "CT", "anatomy": "Chest", "lesion": True},
        {"modality": "CT", "anatomy": "Chest", "lesion": True, "grade": "Mild"},
        {"modality": "CT", "anatomy": "Chest", "lesion": False, "grade": "Mild", "location": "Left"},
    ],
)
def test_facts_that_contradict_each_other_are_refused(wrong: dict[str, str | bool]) -> None:
    with pytest.raises(ValueError, match="use one of"):
        PhantomFacts(**wrong)  # type: ignore[arg-type]


def test_a_description_says_every_fact() -> None:
    facts = PhantomFacts("X-ray", "Hand", True, "Severe", "Bottom")
    lines = {describe(facts, np.random.default_rng(seed)) for seed in range(40)}
    assert len(lines) >= 3
    assert all(word in line for line in lines for word in ("X-ray", "hand", "severe lesion", "at the bottom"))
    assert "no lesion" in describe(PhantomFacts("MRI", "Brain", False), np.random.default_rng(0))
