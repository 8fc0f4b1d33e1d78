"""Options in cells of every form."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.table.options import options_of, split_text
from medr1_ray.types import LETTERS


@pytest.mark.parametrize(
    "cell",
    [
        ["CT", "MRI", "PET"],
        ["CT", "MRI", "PET", None, ""],
        {"A": "CT", "B": "MRI", "C": "PET", "D": None},
        {"c": "PET", "b": "MRI", "a": "CT"},
        {"0": "CT", "1": "MRI", "2": "PET"},
        '["CT", "MRI", "PET"]',
        "['CT', 'MRI', 'PET']",
        '{"A": "CT", "B": "MRI", "C": "PET"}',
        "A) CT B) MRI C) PET",
        "A)CT, B)MRI, C)PET",
        "A. CT\nB. MRI\nC. PET",
        "(A) CT (B) MRI (C) PET",
        "A: CT; B: MRI; C: PET",
        "CT; MRI; PET",
        "CT|MRI|PET",
        "CT\nMRI\nPET",
        "CT;\nMRI;\nPET",
        [{"label": "B", "text": "MRI"}, {"label": "a", "text": "CT"}, {"label": "C", "text": "PET"}],
        '[{"key": 0, "value": "CT"}, {"key": 1, "value": "MRI"}, {"key": 2, "value": "PET"}]',
        ["A) CT", "B) MRI", "C) PET"],
        ["A:CT", "B:MRI", "C:PET"],
    ],
)
def test_one_cell_with_all_options(cell: Any) -> None:
    assert options_of([cell]) == ("CT", "MRI", "PET")


def test_a_cell_for_each_option() -> None:
    assert options_of(["Yes", "No", "", None]) == ("Yes", "No")
    assert options_of([1, 2.5, True]) == ("1", "2.5", "True")
    # A column of whole numbers with a gap.
    assert options_of([1.0, Decimal("2.0"), 2.5, 1e400]) == ("1", "2", "2.5", "inf")
    # Texts of spreadsheets that other readers take for something else.
    assert options_of(["NA", "None", "001"]) == ("NA", "None", "001")
    # Letters go only if each option has its own.
    assert options_of([" A:The CT ", " B:The MRI"]) == ("The CT", "The MRI")
    assert options_of(["A: first", "first"]) == ("A: first", "first")
    many = [f"option {i}" for i in range(len(LETTERS))]
    assert options_of(many) == tuple(many)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["CT", None], "fewer than two options"),
        (["", ""], "fewer than two options"),
        ([None], "no options A"),
        ([[]], "fewer than two options"),
        (["CT", "", "MRI"], "a letter is missing among the options"),
        ([{"A": "CT", "C": "MRI"}], "a letter is missing among the options"),
        (["A)", "B)"], "a letter is missing among the options"),
        (["CT, MRI"], "no options A"),
        (["CT; with contrast | MRI | PET"], "options have several separators"),
        (["Yes; with contrast\nNo"], "options have several separators"),
        ([[["CT"], ["MRI"]]], "option is no text"),
        ([["CT", {"text": "MRI"}]], "option is no text"),
        ([[{"label": "A", "text": "CT"}, {"label": "B", "words": "MRI"}]], "option is no text"),
        ([[{"label": "A", "text": "CT"}, {"label": "A", "text": "MRI"}]], "a letter occurs twice among the options"),
        ([{"a": "CT", "A": "MRI"}], "a letter occurs twice among the options"),
        ([{"A": ["CT"], "B": "MRI"}], "option is no text"),
        (["CT", ["MRI"]], "option is no text"),
        ([b"CT; MRI"], "options is no text"),
        (["Choose: A) CT B) MRI"], "text before the first option"),
        ([[str(i) for i in range(len(LETTERS) + 1)]], f"more than {len(LETTERS)} options"),
    ],
)
def test_options_that_cannot_be_told(cells: list[Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        options_of(cells)


def test_options_in_the_text_of_the_question() -> None:
    assert split_text("Which? A)x, B)y") == ("Which?", ("x", "y"))
    assert split_text("Which?\nA. x\nB. y, z") == ("Which?", ("x", "y, z"))
    assert split_text("Hepatitis B) or not? A) yes B) no") == ("Hepatitis B) or not?", ("yes", "no"))
    with pytest.raises(RowError, match="no options"):
        split_text("Which? A) vitamin A) B) none")
    with pytest.raises(RowError, match="ambiguous"):
        split_text("Which? A) one A: x B) two B: y")
