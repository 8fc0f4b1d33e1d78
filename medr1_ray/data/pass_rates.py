"""Pass rates: how often a model answers each question correctly. Measured elsewhere, used here as a filter.

The file is JSON Lines, one question per line: `{"id": "Chest CT Scan:12", "pass_rate": 0.25}`. Other keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medr1_ray.types import Question


@dataclass(frozen=True)
class Filtered:
    """Training questions within the limits, and the numbers of the others.

    `unmeasured` counts questions without a pass rate; they are kept.
    """

    questions: tuple[Question, ...]
    too_hard: int
    too_easy: int
    unmeasured: int


def read_pass_rates(path: Path) -> dict[str, float]:
    """Return the pass rates by question id; if several lines have the same id, the last one counts.

    Raises:
        ValueError: if the file cannot be read, or a line does not have the form above.
    """
    try:
        # Not splitlines(), which also splits at characters that may occur in an id (U+2028).
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.pass_rates={path}: cannot be read ({error}); give a JSON Lines file with id and pass_rate"
        ) from error
    rates: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            id_, rate = row["id"], row["pass_rate"]
            if not isinstance(id_, str) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise ValueError(f"it has id {id_!r} and pass_rate {rate!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"data.pass_rates={path}, line {number}: {error}; each line must be "
                '{"id": "<question id>", "pass_rate": <a number from 0 to 1>}'
            ) from error
        rates[id_] = float(rate)
    return rates


def filter_by_pass_rate(
    questions: tuple[Question, ...], rates: Mapping[str, float], lowest: float, highest: float
) -> Filtered:
    """Keep the questions with a pass rate in [lowest, highest] or without one, in the order given.

    Raises:
        ValueError: if none of the questions has a pass rate, since the file must be about other data.
    """
    if not any(question.id in rates for question in questions):
        raise ValueError(
            f"data.pass_rates: none of the {len(questions)} training questions is in the file (ids: {len(rates)}); "
            "give a file that was measured on this dataset"
        )
    # The default keeps questions that have not been measured.
    kept = [question for question in questions if lowest <= rates.get(question.id, lowest) <= highest]
    measured = [rates[question.id] for question in questions if question.id in rates]
    return Filtered(
        questions=tuple(kept),
        too_hard=sum(rate < lowest for rate in measured),
        too_easy=sum(rate > highest for rate in measured),
        unmeasured=len(questions) - len(measured),
    )
