"""What a report makes of answers, derived by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from medr1_ray.data.encoding import Refused
from medr1_ray.evaluation.folder import EvaluationFolder, read_answers
from medr1_ray.evaluation.passes import Row
from medr1_ray.evaluation.report import Report, compare, make_report, verdict
from medr1_ray.evaluation.report_page import report_page
from medr1_ray.types import Prompt, Question

N = 40


def _questions() -> list[Question]:
    """Two options each, the first right; two questions an image; half CT, half MRI."""
    return [
        Question(
            f"q{i}",
            f"/{i // 2}.png",
            "What?",
            (f"right{i}", f"wrong{i}"),
            0,
            "CT" if i < N // 2 else "MRI",
            "Disease Diagnosis",
            "d",
        )
        for i in range(N)
    ]


def _rows(right: Callable[[int], bool]) -> dict[str, Row]:
    return {
        f"q{i}": {
            "id": f"q{i}",
            "answer": "A" if right(i) else None,
            "correct": right(i),
            "well_formed": i % 4 != 0,
            "problem": None,
            "truncated": i == 0,
            "completion": "",
        }
        for i in range(N)
    }


def _report(image: Callable[[int], bool], blank: Callable[[int], bool], **changes: object) -> Report:
    rows = {
        "image": _rows(image),
        "blank_image": _rows(blank),
        "shuffled_image": _rows(blank),
        "shuffled_options": _rows(image),
    }
    settings: dict[str, object] = {
        "model": "m",
        "mode": "no_think",
        "split": "test",
        "questions": _questions(),
        "train": [],
        "rows_dropped": {"no question": 2},
        "rows": rows,
        "left_out": {},
        "samples": {},
        "against": None,
    }
    return make_report(**(settings | changes))  # type: ignore[arg-type]


def test_a_model_that_looks_is_better_than_every_blind_baseline() -> None:
    report = _report(lambda i: i % 10 != 0, lambda i: i % 2 == 0)
    assert (report.overall.n, report.overall.images, report.overall.accuracy) == (N, N // 2, 0.9)
    assert (report.overall.format, report.overall.parse_failures, report.overall.truncated) == (0.75, 0.1, 1 / N)
    assert report.overall.interval[0] < 0.9 < report.overall.interval[1]
    assert set(report.overall.baselines) == {
        "chance",
        "blind_prior",
        "blank_image",
        "shuffled_image",
        "shuffled_options",
    }
    # Nothing was counted, so that the prior has two equal options, as chance has.
    assert report.overall.baselines["chance"].accuracy == report.overall.baselines["blind_prior"].accuracy == 0.5
    assert report.overall.baselines["blank_image"].difference == pytest.approx(0.4)
    assert report.verdict[0].startswith("The model is better than every blind baseline")


def test_a_model_that_does_not_look_is_said_not_to() -> None:
    report = _report(lambda i: i % 10 != 0, lambda i: i % 10 != 1)
    assert report.overall.baselines["blank_image"].difference == 0
    assert report.verdict[0] == (
        "The model is NOT shown to be better than blind: not better than blank image, shuffled image."
    )
    assert "(not better)" in report_page(report)


def test_the_blind_prior_is_counted_over_the_training_questions() -> None:
    report = _report(lambda i: True, lambda i: False, train=_questions())
    assert report.overall.baselines["blind_prior"].accuracy == 1
    assert "not better than blind prior" in report.verdict[0]
    assert f"{N // 2} of its {N // 2} images are in the training part too." in report.verdict
    assert "Rows of the data that are no question: no question 2." in report_page(report)


def test_a_weak_modality_is_named() -> None:
    report = _report(lambda i: i < N // 2, lambda i: False)
    assert report.modality["CT"].accuracy == 1
    assert report.modality["MRI"].accuracy == 0
    assert any(sentence.startswith("On MRI (n = 20)") for sentence in report.verdict)
    assert not any(sentence.startswith("On CT") for sentence in report.verdict)


def test_an_accuracy_that_hangs_on_the_order_of_the_options_is_told() -> None:
    report = _report(lambda i: True, lambda i: False)
    assert "order of the options" not in " ".join(verdict(report.overall))
    rows = {"image": _rows(lambda i: True), "blank_image": _rows(lambda i: False)}
    rows |= {"shuffled_image": rows["blank_image"], "shuffled_options": _rows(lambda i: i % 2 == 0)}
    assert "order of the options" in " ".join(_report(bool, bool, rows=rows).verdict)


def test_what_one_pass_left_out_counts_nowhere() -> None:
    report = _report(lambda i: i > 0, lambda i: False, left_out={"q0": "image unreadable"})
    assert (report.overall.n, report.overall.accuracy) == (N - 1, 1)
    assert report.left_out == {"image unreadable": 1}
    assert "Left out of the questions: image unreadable 1." in report_page(report)
    with pytest.raises(ValueError, match="none of the 40"):
        _report(bool, bool, left_out=dict.fromkeys((f"q{i}" for i in range(N)), "prompt too long"))


def test_two_models_on_the_same_questions() -> None:
    # Alone right: 8 here (0..7), 2 there (38, 39): p = 2 * (1 + 10 + 45) / 1024.
    against = compare(_questions(), _rows(lambda i: i < 38), "other", _rows(lambda i: i >= 8))
    assert (against.n, against.only_this, against.only_other) == (N, 8, 2)
    assert against.p == pytest.approx(112 / 1024)
    assert against.difference == pytest.approx(6 / N)
    assert "McNemar's exact p = 0.11" in report_page(_report(bool, bool, against=against))
    with pytest.raises(ValueError, match="none of these questions"):
        compare(_questions(), _rows(bool), "other", {})


def test_a_report_is_json() -> None:
    assert json.loads(json.dumps(asdict(_report(bool, bool))))["overall"]["n"] == N


class Half:
    """A pass whose engine dies at question `dies_at`, and that cannot put question 3."""

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
        return [_rows(bool)[prompt.id] for prompt in prompts]


def test_an_evaluation_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medr1_ray.evaluation.folder.CHUNK", 10)
    first, second = Half(dies_at=25), Half()
    with pytest.raises(RuntimeError):
        EvaluationFolder(tmp_path / "e", {"seed": 0}, _questions()).run(None, first)  # type: ignore[arg-type]
    assert len(read_answers(tmp_path / "e").rows) == 19
    EvaluationFolder(tmp_path / "e", {"seed": 0}, _questions()).run(None, second)  # type: ignore[arg-type]
    assert second.asked == [f"q{i}" for i in range(20, N)]
    answers = read_answers(tmp_path / "e")
    assert len(answers.rows) == N - 1
    assert answers.left_out == {"q3": "prompt too long"}


def test_a_folder_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    EvaluationFolder(tmp_path, {"mode": "think", "weights": "a"}, _questions())
    with pytest.raises(ValueError, match=r"mode 'think', this one has 'no_think'"):
        EvaluationFolder(tmp_path, {"mode": "no_think", "weights": "a"}, _questions())
