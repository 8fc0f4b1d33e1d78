"""What the dataclasses that travel between processes say of themselves."""

from __future__ import annotations

import numpy as np

from medr1_ray.types import Question, Rewards, Span


def test_a_question_is_worded_as_med_r1_words_it() -> None:
    question = Question("q", "/i.png", "Which?", ("CT", "MRI", "X-ray"), 2, "CT", "Unknown", "d")
    assert question.text == "Which? A)CT, B)MRI, C)X-ray"
    assert question.gold_letter == "C"


def test_a_span_lasts_from_its_start_to_its_end() -> None:
    assert Span("driver", "update", 10.0, 12.5).seconds == 2.5


def rewards(*total: float) -> Rewards:
    values = np.array(total, np.float32)
    nothing = (None,) * len(total)
    return Rewards("p", (), values[:, None], values, values > 0, values > 0, nothing, Span("", "", 0, 0))


def test_equal_rewards_are_told_exactly() -> None:
    # The mean of six rewards of 0.3 in float32 is not 0.3: compared with it, they would seem to differ.
    assert rewards(*[0.3] * 6).all_equal
    assert rewards(1.0).all_equal
    assert not rewards(0.1, 0.1, np.nextafter(np.float32(0.1), np.float32(1))).all_equal
    assert not rewards(0.0, 1.0).all_equal
