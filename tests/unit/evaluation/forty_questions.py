"""Forty questions about twenty images, rows of answers to them, and the report on these."""

from __future__ import annotations

from collections.abc import Callable

from medr1_ray.evaluation.passes import Row
from medr1_ray.evaluation.report import Report, make_report
from medr1_ray.types import Question

N = 40


def questions() -> list[Question]:
    """Return questions with two options, the first correct; two questions per image; half CT, half MRI."""
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


def rows_of(right: Callable[[int], bool]) -> dict[str, Row]:
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


def report_of(image: Callable[[int], bool], blank: Callable[[int], bool], **changes: object) -> Report:
    rows = {
        "image": rows_of(image),
        "blank_image": rows_of(blank),
        "shuffled_image": rows_of(blank),
        "shuffled_options": rows_of(image),
    }
    settings: dict[str, object] = {
        "model": "m",
        "mode": "no_think",
        "split": "test",
        "questions": questions(),
        "train": [],
        "rows_dropped": {"no question": 2},
        "rows": rows,
        "left_out": {},
        "samples": {},
        "against": None,
    }
    return make_report(**(settings | changes))  # type: ignore[arg-type]
