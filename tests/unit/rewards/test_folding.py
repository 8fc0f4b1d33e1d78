"""Texts are compared under the tightest fold that finds an option."""
# ruff: noqa: RUF001  the look-alikes are the point

from __future__ import annotations

import pytest

from medr1_ray.rewards.folding import Options, compatible, unwrapped, with_ascii_marks, without_emphasis


@pytest.mark.parametrize(
    ("options", "text", "found"),
    [
        (("CO", "Co"), "CO", [0]),
        (("CO", "Co"), "Co.", [1]),
        (("CO", "Co"), "co", [0, 1]),
        (("Co", "x"), "co", [0]),
        (("Ulna", "Ulna."), "Ulna.", [1]),
        (("Ulna", "Ulna."), "ulna", [0, 1]),
        (("T2", "T2*"), "*T2*", [0]),
        (("a - b", "a – b"), "a – b", [1]),
        (("x", "y"), "z", []),
        # A text of which a fold leaves nothing equals nothing.
        ((".", "y"), "…", []),
        ((".", "y"), ".", [0]),
    ],
)
def test_the_tightest_fold_that_finds_an_option_decides(
    options: tuple[str, ...], text: str, found: list[int]
) -> None:
    assert Options(options).equal_to(text) == found


def test_a_text_much_longer_than_all_options_is_not_compared() -> None:
    options = Options(("CT", "MRI"))
    assert options.shorten(" C\u200b \n CT ") == "C CT"
    assert options.shorten("e\u0301") == "é"
    # Four times the longest option, and 64 for what may surround it.
    assert options.shorten("x" * 76) == "x" * 76
    assert options.shorten("x" * 77) is None
    assert options.shorten("\u200b" * 1000 + "CT") == "CT"


@pytest.mark.parametrize(
    ("fold", "text", "folded"),
    [
        (unwrapped, "'\"CT\"'", "CT"),
        (unwrapped, "« CT »", "CT"),
        (unwrapped, "5'", "5'"),
        (unwrapped, '""', '""'),
        (with_ascii_marks, "（“Ｃ”）、５²…", '("Ｃ"),５²...'),
        (with_ascii_marks, "a\u2011b\u2014c\u3000d", "a-b-c d"),
        (with_ascii_marks, "﹁︒❨", '".('),
        (without_emphasis, "**C)** T2* and ***x***", "C) T2* and x"),
        (without_emphasis, "2 * 3 * 4", "2 * 3 * 4"),
        (compatible, "Ⓒ Ⅳ ｃｍ² １０²", "C IV cm2 10²"),
    ],
)
def test_folds(fold, text: str, folded: str) -> None:  # type: ignore[no-untyped-def]
    assert fold(text) == folded
