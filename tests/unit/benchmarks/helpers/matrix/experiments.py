"""An experiment of the matrix whose answers are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.helpers.matrix import evaluation
from benchmarks.helpers.matrix.evaluation import evaluation_folder, held_out_questions
from benchmarks.helpers.matrix.settings import NAMES, MatrixSettings, Trained, column_of, rows
from medr1_ray.data.dataset import Dataset
from medr1_ray.types import Question


def answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, right: Callable[[str, Question], bool]
) -> MatrixSettings:
    """An experiment over question types: `right(row, question)` decides each answer; none to a blank is right."""
    questions = tuple(
        Question(f"{name}{i}", f"/{name}{i // 2}.png", "What?", ("x", "y"), 0, "CT", name, "d")
        for name in NAMES["question_type"]
        for i in range(20)
    )
    monkeypatch.setattr(evaluation, "_read", lambda configs: Dataset(questions, questions, ()))
    settings = MatrixSettings.model_validate(
        {
            "out": folder,
            "configs": ["unused.yaml"],
            "methods": {"grpo": {"command": "train"}, "sft": {"command": "sft"}},
            "axes": {"no_think": {"question_type": []}},
        }
    )
    trained: list[Trained | None] = [None, *rows(settings)]
    for row in trained:
        answers = evaluation_folder(settings, row, "question_type", "no_think") / "answers"
        answers.mkdir(parents=True, exist_ok=True)
        for name in ("image", "blank_image"):
            lines = [
                json.dumps({"id": q.id, "correct": name == "image" and right(row.slug if row else "base", q)})
                for q in held_out_questions(settings, "question_type")
            ]
            (answers / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return settings


def in_domain(row: str, question: Question) -> bool:
    """Right on the row's own question type, and under GRPO on every tenth of the others."""
    own = column_of(question, "question_type").lower().replace(" ", "_")
    return own in row or ("grpo" in row and question.id.endswith("1"))
