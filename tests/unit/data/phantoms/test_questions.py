"""Questions about phantoms need the picture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medr1_ray.data.phantoms import (
    MODALITIES,
    QUESTION_TYPES,
    PhantomQuestion,
    phantom_facts,
    phantom_questions,
)
from medr1_ray.data.phantoms.facts import OVERLAPS


@pytest.fixture(scope="module")
def asked() -> list[list[PhantomQuestion]]:
    """Return the questions of 6000 phantoms, one list per phantom."""
    return [phantom_questions(7, index) for index in range(6000)]


def test_every_fact_is_asked_for_once_and_answered_rightly() -> None:
    for index in range(64):
        facts = phantom_facts(5, index)
        asked = phantom_questions(5, index)
        answers = [facts.modality, facts.anatomy, "Yes" if facts.lesion else "No"]
        answers += [facts.grade, facts.location] if facts.grade and facts.location else []
        assert [question.answer for question in asked] == answers
        assert [question.question_type for question in asked] == list(QUESTION_TYPES[: len(answers)])
        assert [len(question.options) for question in asked] == [4, 4, 2, 3, 4][: len(answers)]
        for question in asked:
            assert len(set(question.options)) == len(question.options)
            assert question.answer in question.options
            assert not any(overlap <= set(question.options) for overlap in OVERLAPS)


def test_a_stem_does_not_tell_the_modality(asked: list[list[PhantomQuestion]]) -> None:
    for question in (question for questions in asked[:400] for question in questions):
        assert len(question.stem.split()) <= 12
        assert not any(modality.lower() in question.stem.lower().split() for modality in MODALITIES)


def test_the_gold_position_is_uniform(asked: list[list[PhantomQuestion]]) -> None:
    for question_type in QUESTION_TYPES:
        of_type = [q for questions in asked for q in questions if q.question_type == question_type]
        positions = Counter(question.options.index(question.answer) for question in of_type)
        options = len(of_type[0].options)
        for position in range(options):
            assert positions[position] / len(of_type) == pytest.approx(1 / options, abs=0.03)


def test_the_gold_anatomy_is_any_of_those_offered_equally_often(asked: list[list[PhantomQuestion]]) -> None:
    offered: Counter[str] = Counter()
    gold: Counter[str] = Counter()
    for questions in asked:
        offered.update(questions[1].options)
        gold[questions[1].answer] += 1
    for anatomy in offered:
        assert gold[anatomy] / offered[anatomy] == pytest.approx(0.25, abs=0.035), anatomy


def test_a_blind_prior_stays_at_chance(asked: list[list[PhantomQuestion]]) -> None:
    offered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for question in (question for questions in asked[:2000] for question in questions):
        offered.update(option.lower() for option in question.options)
        right[question.answer.lower()] += 1

    def score(option: str) -> float:
        return (right[option.lower()] + 0.25) / (offered[option.lower()] + 1)

    test = [question for questions in asked[2000:] for question in questions]
    for question_type in (*QUESTION_TYPES, ""):
        of_type = [question for question in test if question_type in ("", question.question_type)]
        hits = np.mean([max(question.options, key=score) == question.answer for question in of_type])
        chance = np.mean([1 / len(question.options) for question in of_type])
        assert abs(hits - chance) < 0.04, (question_type, hits, chance)
