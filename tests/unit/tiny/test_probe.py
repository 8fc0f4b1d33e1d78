"""Zero-shot evaluation with transformers' own generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medr1_ray.config import tiny_model_path
from medr1_ray.data.phantoms import MODALITIES, QUESTION_TYPES
from medr1_ray.tiny import probe as module
from medr1_ray.tiny.curriculum import PhantomCase, phantom_case
from medr1_ray.tiny.probe import probe


def test_the_shipped_model_answers_in_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 20)
    scores = probe(tiny_model_path(), "no_think", phantoms=8, samples=0)
    assert scores.well_formed == 1.0
    assert scores.any_right == scores.accuracy
    assert 0.2 < scores.accuracy < 0.9
    assert all(example.startswith("<answer>") for example in scores.examples)


def test_scores_are_shares_of_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers by hand: of each question's two samples the first is A, the second the gold letter in no form."""
    cases = [phantom_case(module.PROBE_SEED, index) for index in range(8)]
    questions = [question for case in cases for question in case.questions]

    def answers(
        model: Any, processor: Any, users: list[str], cases: list[PhantomCase], samples: int
    ) -> list[list[str]]:
        assert samples == 2
        return [["<answer>A</answer>", "no idea"] for _ in users]

    monkeypatch.setattr(module, "_answers", answers)
    scores = probe(tiny_model_path(), "no_think", phantoms=8, samples=2)
    hits = [question.options[0] == question.answer for question in questions]
    assert scores.accuracy == pytest.approx(np.mean(hits) / 2), "the second sample of each is wrong"
    assert scores.any_right == pytest.approx(np.mean(hits))
    assert scores.well_formed == 0.5
    for kind in QUESTION_TYPES:
        of_kind = [hit for hit, question in zip(hits, questions, strict=True) if question.question_type == kind]
        assert scores.by_type[kind] == pytest.approx(np.mean(of_kind) / 2)
    of_first = [question.options[0] == question.answer for question in cases[0].questions]
    assert scores.by_modality[MODALITIES[0]] == pytest.approx(np.mean(of_first) / 2)


def test_nothing_to_ask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="phantoms is 0"):
        probe(tmp_path, "no_think", phantoms=0, samples=0)
