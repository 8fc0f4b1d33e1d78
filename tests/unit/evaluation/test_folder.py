"""An evaluation on disk: resumed where it was cut off, refused where it is another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medr1_ray.data.encoding import Refused
from medr1_ray.evaluation.folder import EvaluationFolder, read_answers
from medr1_ray.evaluation.passes import Row
from medr1_ray.types import Prompt, Question
from tests.unit.evaluation.forty_questions import N, questions, rows_of


class Half:
    """A pass that cannot ask question 3, and whose engine dies at question `dies_at`."""

    name = "image"

    def __init__(self, dies_at: int = N) -> None:
        self.dies_at = dies_at
        self.asked: list[str] = []

    def ask(self, question: Question) -> Prompt | Refused:
        if question.id == "q3":
            return Refused("prompt too long", "")
        return Prompt(question.id, question, np.zeros(1, np.int32), np.zeros((1, 1, 3), np.uint8))

    def run(self, engines: object, prompts: Sequence[Prompt]) -> list[Row]:
        self.asked += [prompt.id for prompt in prompts]
        if f"q{self.dies_at}" in self.asked:
            raise RuntimeError("the engine died")
        return [rows_of(bool)[prompt.id] for prompt in prompts]


def test_an_evaluation_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medr1_ray.evaluation.folder.CHUNK", 10)
    first, second = Half(dies_at=25), Half()
    with pytest.raises(RuntimeError):
        EvaluationFolder(tmp_path / "e", {"seed": 0}, questions()).run(None, first)  # type: ignore[arg-type]
    assert len(read_answers(tmp_path / "e").rows) == 19
    EvaluationFolder(tmp_path / "e", {"seed": 0}, questions()).run(None, second)  # type: ignore[arg-type]
    assert second.asked == [f"q{i}" for i in range(20, N)]
    answers = read_answers(tmp_path / "e")
    assert len(answers.rows) == N - 1
    assert answers.left_out == {"q3": "prompt too long"}


def test_a_folder_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    EvaluationFolder(tmp_path, {"mode": "think", "weights": "a"}, questions())
    with pytest.raises(ValueError, match=r"mode 'think', this one has 'no_think'"):
        EvaluationFolder(tmp_path, {"mode": "no_think", "weights": "a"}, questions())
