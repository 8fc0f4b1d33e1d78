"""Evaluations during a training, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medr1_ray.evaluation.in_training import Evaluation, EvaluationLog, evaluate
from medr1_ray.types import Prompt, Question, Sampling
from tests.faults.files import full
from tests.unit.evaluation.engines import Engines

# The engines answer A: right for the first and the last.
QUESTIONS = [
    Question(id_, "/i.png", "Which?", ("CT", "MRI"), answer, modality, kind, "d")
    for id_, answer, modality, kind in (
        ("q0", 0, "CT", "Modality Recognition"),
        ("q1", 1, "CT", "Lesion Grading"),
        ("q2", 1, "MRI", "Lesion Grading"),
        ("q3", 0, "CT", "Lesion Grading"),
    )
]
PROMPTS = [Prompt(each.id, each, np.zeros(1, np.int32), np.zeros((1, 1, 3), np.uint8)) for each in QUESTIONS]


def test_one_greedy_answer_to_each_question_is_counted_by_modality_and_type() -> None:
    engines = Engines("A")
    evaluation, groups = evaluate(engines, PROMPTS, max_tokens=8)  # type: ignore[arg-type]
    assert engines.sampling == Sampling(group_size=1, max_tokens=8, temperature=0.0)
    assert [group.prompt.id for group in groups] == ["q0", "q1", "q2", "q3"]
    assert (evaluation.n, evaluation.accuracy) == (4, 0.5)
    assert evaluation.by_modality == {"CT": 2 / 3, "MRI": 0.0}
    assert evaluation.by_question_type == {"Lesion Grading": 1 / 3, "Modality Recognition": 1.0}


def test_the_log_finds_what_was_added_before(tmp_path: Path) -> None:
    evaluation = Evaluation(0.5, 1.0, 2, {"CT": 0.5}, {"Lesion Grading": 0.5})
    EvaluationLog(tmp_path / "evaluations", print).add("before", 0, evaluation, [])
    assert EvaluationLog(tmp_path / "evaluations", print).find("before") == evaluation
    assert EvaluationLog(tmp_path / "evaluations", print).find("after") is None


def test_an_evaluation_of_another_step_is_another(tmp_path: Path) -> None:
    evaluation = Evaluation(0.5, 1.0, 2, {}, {})
    log = EvaluationLog(tmp_path, print)
    log.add("after", 4, evaluation, [])
    assert log.find("after", 4) == evaluation
    assert log.find("after", 6) is None, "of a run that went on with more steps"


def test_evaluations_of_weights_that_the_run_no_longer_has_are_moved_aside(tmp_path: Path) -> None:
    old, new = Evaluation(0.5, 1.0, 2, {}, {}), Evaluation(0.75, 1.0, 2, {}, {})
    log = EvaluationLog(tmp_path, print)
    for name, step in (("before", 0), ("step-2", 2), ("step-4", 4), ("after", 6)):
        log.add(name, step, old, [])
    (tmp_path / "step-6.json").write_text("damaged")
    resumed = EvaluationLog(tmp_path, print, 2)
    found = [resumed.after_step(step) for step in (2, 4)]
    assert (found, resumed.find("after"), resumed.find("before")) == ([old, None], None, old)
    resumed.add("step-4", 4, new, [])
    again = EvaluationLog(tmp_path, print, 3)
    assert again.after_step(4) is None
    assert sorted(path.name for path in tmp_path.glob("*step-4.json*")) == [
        f"discarded-{n}-step-4.{kind}" for n in (1, 2) for kind in ("json", "jsonl")
    ]
    with pytest.raises(ValueError, match=r"step-6\.json: is not JSON"):
        again.after_step(6)


def test_the_evaluation_after_the_last_step_is_one_of_its_step(tmp_path: Path) -> None:
    log, evaluation = EvaluationLog(tmp_path, print), Evaluation(0.5, 1.0, 2, {}, {})
    log.add("after", 4, evaluation, [])
    assert (log.after_step(4), log.after_step(6)) == (evaluation, None)


def test_an_evaluation_for_which_there_is_no_room_does_not_end_the_run(disk: Path) -> None:
    said: list[str] = []
    log, evaluation = EvaluationLog(disk / "evaluations", said.append), Evaluation(0.5, 1.0, 2, {"CT": 0.5}, {})
    with full(disk):
        log.add("before", 0, evaluation, [])
        assert log.find("before") == evaluation
    assert said == ["NOT WRITTEN: evaluation before: No space left on device; the run goes on without its files"]
    assert not (disk / "evaluations" / "before.json").exists()


def test_the_log_has_the_step_and_every_answer(tmp_path: Path) -> None:
    evaluation, groups = evaluate(Engines("A"), PROMPTS, max_tokens=8)  # type: ignore[arg-type]
    log = EvaluationLog(tmp_path, print)
    log.add("step-5", 5, evaluation, groups[:1])
    log.add("step-5", 6, evaluation, groups)  # a run that was resumed before it
    assert json.loads((tmp_path / "step-5.json").read_text())["step"] == 6
    answers = [json.loads(line) for line in (tmp_path / "step-5.jsonl").read_text().splitlines()]
    assert [each["question"]["id"] for each in answers] == ["q0", "q1", "q2", "q3"]
    assert [each["gold"] for each in answers] == ["A", "B", "B", "A"]
    assert [each["correct"] for each in answers] == [True, False, False, True]
    assert {each["completion"] for each in answers} == {"A"}
