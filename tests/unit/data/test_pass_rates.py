"""The filter by pass rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import DataSettings
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.pass_rates import filter_by_pass_rate, read_pass_rates
from medr1_ray.types import Question

QUESTIONS = tuple(
    Question(id_, "/i.png", "What?", ("x", "y"), 0, "CT", "Lesion Grading", "d") for id_ in ("a", "b", "c", "d")
)


def write_rates(path: Path, rates: dict[str, float]) -> None:
    rows = ({"id": id_, "pass_rate": rate, "samples": 4} for id_, rate in rates.items())
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_rates_are_read_as_written(tmp_path: Path) -> None:
    rates = {"Chest CT Scan:1": 0.25, "ü\u2028:2": 1.0}
    write_rates(tmp_path / "rates.jsonl", rates)
    assert read_pass_rates(tmp_path / "rates.jsonl") == rates


@pytest.mark.parametrize(
    ("lowest", "highest", "kept", "too_hard", "too_easy"),
    [(0, 1, "abcd", 0, 0), (0.1, 0.9, "bd", 1, 1), (0.5, 0.5, "bd", 1, 1), (0.0, 0.5, "abd", 0, 1)],
)
def test_limits_are_inclusive_and_all_is_counted(
    lowest: float, highest: float, kept: str, too_hard: int, too_easy: int
) -> None:
    # d was never measured.
    filtered = filter_by_pass_rate(QUESTIONS, {"a": 0.0, "b": 0.5, "c": 1.0, "other": 0.3}, lowest, highest)
    assert "".join(question.id for question in filtered.questions) == kept
    assert (filtered.too_hard, filtered.too_easy, filtered.unmeasured) == (too_hard, too_easy, 1)


def test_rates_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the 4 training questions is in the file \(ids: 1\)"):
        filter_by_pass_rate(QUESTIONS, {"z": 0.5}, 0.1, 0.9)


@pytest.mark.parametrize(
    "line",
    ["", "no json", "[1]", '{"id": "a"}', '{"id": "a", "pass_rate": 1.5}', '{"id": 3, "pass_rate": 0.5}'],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rates.jsonl"
    path.write_text('{"id": "a", "pass_rate": 0.5}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"data\.pass_rates=.*, line 2: .*each line must be"):
        read_pass_rates(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.pass_rates=.*cannot be read"):
        read_pass_rates(tmp_path / "gone.jsonl")


@pytest.fixture
def four_questions(tmp_path: Path) -> dict[str, Any]:
    """Settings of a dataset of four training questions, three with a pass rate, and four evaluation questions."""
    (tmp_path / "I").mkdir()
    (tmp_path / "I" / "a.png").touch()
    row = {"image": "I/a.png", "problem": "What? A)x, B)y", "solution": "<answer> A </answer>"}
    for part in ("train", "test"):
        (tmp_path / f"CT_{part}.json").write_text(json.dumps([row] * 4))
    rates = {"CT_train:0": 0.0, "CT_train:1": 0.5, "CT_train:2": 1.0, "CT_test:0": 0.0}
    write_rates(tmp_path / "rates.jsonl", rates)
    files = {"train_file": "CT_train.json", "eval_file": "CT_test.json", "pass_rates": tmp_path / "rates.jsonl"}
    return {"format": "medr1", "root": tmp_path, **files}


def test_training_questions_are_filtered_and_evaluation_ones_are_not(four_questions: dict[str, Any]) -> None:
    dataset = open_dataset(DataSettings(**four_questions, min_pass_rate=0.1, max_pass_rate=0.9))
    assert [question.id for question in dataset.train] == ["CT_train:1", "CT_train:3"]
    assert len(dataset.evaluation) == 4
    assert (
        "left out of training by pass rate: 1 below 0.1, 1 above 0.9; 1 without a pass rate kept" in dataset.description
    )


def test_limits_that_leave_no_question_are_refused(four_questions: dict[str, Any], tmp_path: Path) -> None:
    write_rates(tmp_path / "rates.jsonl", {f"CT_train:{row}": 1.0 for row in range(4)})
    settings = DataSettings(**four_questions, max_pass_rate=0.9)
    says = r"data\.pass_rates=.*no training question is left \(.*0 below 0, 4 above 0\.9"
    with pytest.raises(ValueError, match=says):
        open_dataset(settings)
