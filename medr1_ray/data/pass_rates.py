"""Pass rates: how often a model answers a question rightly. Measured elsewhere, used as a filter.

The file is JSON Lines, a question in each: `{"id": "Chest CT Scan:12", "pass_rate": 0.25}`; more keys do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medr1_ray.types import Question


@dataclass(frozen=True)
class Filtered:
    """Training questions within the limits; the others are counted. `unmeasured` have no pass rate and are kept."""

    questions: tuple[Question, ...]
    too_hard: int
    too_easy: int
    unmeasured: int


def read_pass_rates(path: Path) -> dict[str, float]:
    """The pass rates by question id; of several lines with an id the last counts.

    Raises:
        ValueError: if the file cannot be read, or a line is not of the form above.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.pass_rates={path}: cannot be read ({error}); give a file in JSON Lines (id, pass_rate)"
        ) from error
    rates: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            id_, rate = row["id"], row["pass_rate"]
            if not isinstance(id_, str) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise ValueError(f"id {id_!r}, pass_rate {rate!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"data.pass_rates={path}, line {number}: {error}; a line is "
                '{"id": "<question id>", "pass_rate": <a number from 0 to 1>}'
            ) from error
        rates[id_] = float(rate)
    return rates


def filter_by_pass_rate(
    questions: tuple[Question, ...], rates: Mapping[str, float], lowest: float, highest: float
) -> Filtered:
    """Keep the questions whose pass rate is in [lowest, highest], in their order.

    Raises:
        ValueError: if none of the questions has a pass rate: the file is of other data.
    """
    if not any(question.id in rates for question in questions):
        raise ValueError(
            f"data.pass_rates: none of the {len(questions)} training questions is among its {len(rates)}; give "
            "the file that was measured on this dataset"
        )
    kept = [question for question in questions if lowest <= rates.get(question.id, lowest) <= highest]
    measured = [rates[question.id] for question in questions if question.id in rates]
    return Filtered(
        questions=tuple(kept),
        too_hard=sum(rate < lowest for rate in measured),
        too_easy=sum(rate > highest for rate in measured),
        unmeasured=len(questions) - len(measured),
    )
