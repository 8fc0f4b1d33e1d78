"""Reports of given answers against numbers derived by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from medr1_ray.evaluation.report import compare, verdict
from tests.unit.evaluation.forty_questions import N, questions, report_of, rows_of


def test_a_model_that_looks_is_better_than_every_blind_baseline() -> None:
    report = report_of(lambda i: i % 10 != 0, lambda i: i % 2 == 0)
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
    # Without training questions the prior scores both options equally, like chance.
    assert report.overall.baselines["chance"].accuracy == report.overall.baselines["blind_prior"].accuracy == 0.5
    assert report.overall.baselines["blank_image"].difference == pytest.approx(0.4)
    assert report.verdict[0].startswith("The model is better than every blind baseline")


def test_a_model_that_does_not_look_is_said_not_to() -> None:
    report = report_of(lambda i: i % 10 != 0, lambda i: i % 10 != 1)
    assert report.overall.baselines["blank_image"].difference == 0
    assert report.verdict[0] == (
        "The model is NOT shown to be better than blind: not better than blank image, shuffled image."
    )


def test_the_blind_prior_is_counted_over_the_training_questions() -> None:
    report = report_of(lambda i: True, lambda i: False, train=questions())
    assert report.overall.baselines["blind_prior"].accuracy == 1
    assert "not better than blind prior" in report.verdict[0]
    assert f"{N // 2} of its {N // 2} images are also in the training part." in report.verdict


def test_a_weak_modality_is_named() -> None:
    report = report_of(lambda i: i < N // 2, lambda i: False)
    assert report.modality["CT"].accuracy == 1
    assert report.modality["MRI"].accuracy == 0
    assert any(sentence.startswith("On MRI (n = 20)") for sentence in report.verdict)
    assert not any(sentence.startswith("On CT") for sentence in report.verdict)


def test_an_accuracy_that_hangs_on_the_order_of_the_options_is_told() -> None:
    report = report_of(lambda i: True, lambda i: False)
    assert "their order is not shown to matter, difference +0.000" in " ".join(verdict(report.overall))
    rows = {"image": rows_of(lambda i: True), "blank_image": rows_of(lambda i: False)}
    rows |= {"shuffled_image": rows["blank_image"], "shuffled_options": rows_of(lambda i: i % 2 == 0)}
    told = " ".join(report_of(bool, bool, rows=rows).verdict)
    assert "its accuracy depends on their order, difference +0.500" in told


def test_what_one_pass_left_out_counts_nowhere() -> None:
    report = report_of(lambda i: i > 0, lambda i: False, left_out={"q0": "image unreadable"})
    assert (report.overall.n, report.overall.accuracy) == (N - 1, 1)
    assert report.left_out == {"image unreadable": 1}
    with pytest.raises(ValueError, match="none of the 40"):
        report_of(bool, bool, left_out=dict.fromkeys((f"q{i}" for i in range(N)), "prompt too long"))


def test_two_models_on_the_same_questions() -> None:
    # Right only here: 8 (0..7), only there: 2 (38, 39): p = 2 * (1 + 10 + 45) / 1024.
    against = compare(questions(), rows_of(lambda i: i < 38), "other", rows_of(lambda i: i >= 8))
    assert (against.n, against.only_this, against.only_other) == (N, 8, 2)
    assert against.p == pytest.approx(112 / 1024)
    assert against.difference == pytest.approx(6 / N)
    with pytest.raises(ValueError, match="none of these questions"):
        compare(questions(), rows_of(bool), "other", {})


def test_a_report_is_json() -> None:
    assert json.loads(json.dumps(asdict(report_of(bool, bool))))["overall"]["n"] == N
