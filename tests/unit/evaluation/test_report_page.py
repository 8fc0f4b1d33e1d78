"""The page of a report: what its lines say."""

from __future__ import annotations

from dataclasses import replace

from medr1_ray.evaluation.report import Against, Comparison, Report, Share
from medr1_ray.evaluation.report_page import _table, report_page

CHANCE = Comparison(accuracy=0.5, difference=0.4, interval=(0.3, 0.5), better=True)
BLANK = Comparison(accuracy=0.88, difference=0.02, interval=(-0.1, 0.1), better=False)
ALL = Share(40, 20, 0.9, (0.8, 0.97), 0.75, 0.1, 0.025, {"chance": CHANCE, "blank_image": BLANK})
CT = Share(30, 15, 0.8, (0.7, 0.87), 1.0, 0.0, 0.0, {"chance": CHANCE, "blank_image": CHANCE})
TEXT = Share(40, 20, 0.4, (0.3, 0.5), 1.0, 0.0, 0.0, {})


def page(against: Against | None = None, samples: int = 0, pass_rate: float | None = None) -> list[str]:
    report = Report(
        model="my_run-checkpoint-5",
        mode="think",
        split="test",
        overall=ALL,
        modality={"CT": CT},
        question_type={"Lesion Grading": CT},
        dataset={"d": CT},
        scorings={"text": TEXT},
        left_out={"prompt too long": 2, "image unreadable": 1},
        rows_dropped={},
        shared_images=0,
        samples=samples,
        pass_rate=pass_rate,
        against=against,
        verdict=("It looks.", "It is good."),
    )
    return report_page(report).splitlines()


def test_the_verdict_comes_first_and_every_subset_has_a_table() -> None:
    lines = page()
    assert lines[:5] == ["# my_run-checkpoint-5, think, test", "", "- It looks.", "- It is good.", ""]
    titles = [line for line in lines if line.startswith("## ")]
    assert titles == [
        "## By modality",
        "## By question type",
        "## By source dataset",
        "## OmniMedVQA's scores (arXiv 2402.09181)",
    ]
    of_all = "| all | 40 | 20 | 0.900 | 0.800 to 0.970 | 0.750 | 0.100 | 0.025 | 0.500 | 0.880 (not better) |"
    first = lines.index(of_all)
    assert lines[first - 2 : first] == [
        "| all | questions | images | accuracy | 95 % | format | parse failures | truncated | chance | blank image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    assert "| CT | 30 | 15 | 0.800 | 0.700 to 0.870 | 1.000 | 0.000 | 0.000 | 0.500 | 0.500 |" in lines
    assert "| text | 40 | 20 | 0.400 | 0.300 to 0.500 | 1.000 | 0.000 | 0.000 |" in lines


def test_what_does_not_count_is_counted() -> None:
    lines = page()
    assert "Questions left out: image unreadable 1, prompt too long 2." in lines
    assert "Data rows that are not valid questions: nothing." in lines
    assert not any("sampled answers" in line or line.startswith("Against") for line in lines)


def test_samples_and_another_model_are_told_where_there_are_any() -> None:
    against = Against("other", 39, 0.9, 0.75, 0.15, (0.05, 0.25), 8, 2, 0.109375)
    lines = page(against, samples=4, pass_rate=0.625)
    assert "4 sampled answers per question: mean pass rate 0.625." in lines
    assert (
        "Against other on 39 questions: 0.900 vs 0.750, difference +0.150 [+0.050, +0.250]; 8 right only here, 2 right "
        "only there, McNemar's exact p = 0.11."
    ) in lines


def test_options_in_another_order_are_marked_only_where_the_order_matters() -> None:
    same = Comparison(accuracy=0.9, difference=0.0, interval=(-0.05, 0.05), better=False)
    worse = Comparison(accuracy=0.6, difference=0.3, interval=(0.2, 0.4), better=True)
    for other, cell in ((same, "| 0.900 |"), (worse, "| 0.600 (order matters) |")):
        assert _table("all", {"all": replace(ALL, baselines={"shuffled_options": other})}, ["shuffled_options"])[
            -1
        ].endswith(cell)
