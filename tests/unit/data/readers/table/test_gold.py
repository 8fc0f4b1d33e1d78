"""What the answers of a table are."""

from __future__ import annotations

import pytest

from medr1_ray.data.readers.table.gold import Ambiguous, option_of, settle

ABC = ("CT", "MRI", "PET")
YES = ("Yes", "No")


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "b)", "Option B", "B) MRI", "B: mri"])
def test_letters(answer: str) -> None:
    assert option_of("letter", answer, ABC) == 1


@pytest.mark.parametrize("answer", ["D", "", "MRI", "BC", "B) CT", "A) DWI", "1"])
def test_not_letters(answer: str) -> None:
    assert option_of("letter", answer, ABC) is None


def test_texts() -> None:
    assert option_of("text", "mri", ABC) == 1
    assert option_of("text", "M R I", ABC) is None
    assert option_of("text", "T2", ("t2", "T2")) == 1
    assert option_of("text", "tT2", ("t2", "T2")) is None
    assert option_of("text", "t 2", ("T  2", "t 2 ", "t1")) is None  # two differ in case and spaces alone


def test_texts_that_are_whole_numbers() -> None:
    assert option_of("text", "2.0", ("1", "2", "3")) == 1
    assert option_of("text", "2", ("1.0", "2.0")) == 1
    assert option_of("text", "2.0", ("2", "2.0")) == 1
    assert option_of("text", "2.5", ("2", "3")) is None


def test_one_for_yes() -> None:
    pairs = (YES, ("no", "YES"), ("Positive", "negative"), ("not seen", "seen"))
    assert [option_of("yes_is_1", "1", pair) for pair in pairs] == [0, 1, 0, 1]
    assert [option_of("yes_is_1", "0.0", pair) for pair in pairs] == [1, 0, 1, 0]
    assert [option_of("yes_is_1", answer, YES) for answer in ("2", "yes", "True", "False")] == [None] * 4
    assert [option_of("yes_is_1", "1", options) for options in (("CT", "MRI"), ("yes", "no", "maybe"))] == [None] * 2


def test_numbers() -> None:
    assert [option_of("index_from_0", answer, ABC) for answer in ("0", "2", "2.0", "3", "-1", "1.5")] == [0, 2, 2] + [
        None
    ] * 3
    assert [option_of("index_from_1", answer, ABC) for answer in ("0", "1", "3", "4")] == [None, 0, 2, None]


@pytest.mark.parametrize(
    ("answers", "options", "ways"),
    [
        (["A", "c", "B"], [ABC] * 3, ("letter",)),
        (["CT", "pet"], [ABC] * 2, ("text",)),
        # A table of two halves, neither of which contradicts the other.
        (["A", "pet"] * 5, [ABC] * 10, ("letter", "text")),
        (["A"] * 20 + ["2", "1", "0"] * 2, [ABC] * 26, ("letter", "index_from_0")),
        # Four rows are too few, and so are five of more than 25: they may be wrong ones.
        (["A", "pet"] * 4, [ABC] * 8, ("letter",)),
        (["A"] * 21 + ["pet"] * 5, [ABC] * 26, ("letter",)),
        (["CT"] * 8 + ["4"], [ABC] * 8 + [("4 mm", "8 mm", "12 mm", "16 mm")], ("text",)),
        (["Yes", "No"] * 2 + ["2"], [YES] * 4 + [("One", "Two")], ("text",)),
        (["CT"] * 8 + ["A"], [ABC] * 8 + [("Type B", "Type A")], ("text",)),
        (["Yes", "No"] * 2 + ["0"], [YES] * 5, ("text",)),
        (["0", "2", "1"], [ABC] * 3, ("index_from_0",)),
        (["1", "3", "2"], [ABC] * 3, ("index_from_1",)),
        # What no way can read is left to be dropped.
        (["1", "3", "x"], [ABC] * 3, ("index_from_1",)),
        (["both", "neither"], [YES] * 2, ()),
        # The one question whose options are numbers does not make the others doubtful.
        (["CT", "Yes", "1"], [ABC, YES, ("2", "1", "0")], ("text",)),
        (["CT", "Yes", "1"], [ABC, YES, ("1", "2", "3")], ("text",)),
        # Labels of yes and no where both readings are the same, or where other questions show that they are positions.
        (["0", "1"], [("No", "Yes")] * 2, ("index_from_0",)),
        (["2", "1"], [YES] * 2, ("index_from_1",)),
        (["0", "1"] + ["0", "2", "1"] * 2, [YES] * 2 + [ABC] * 6, ("index_from_0",)),
        ([], [], ()),
    ],
)
def test_how_a_table_is_read(answers: list[str], options: list[tuple[str, ...]], ways: tuple[str, ...]) -> None:
    assert settle(answers, options, None) == ways


@pytest.mark.parametrize(
    ("answers", "options", "message"),
    [
        # Nothing tells whether they count from 0 or from 1.
        (["1", "2", "1"], [ABC] * 3, "numbers from 0 or numbers from 1: '1' would be 'MRI' or 'CT'"),
        # A 0 and a 3 of three options cannot both be right.
        (["0", "3", "1", "1"], [ABC] * 4, "numbers from"),
        (["A", "1", "2"], [ABC] * 3, "numbers from 0 or numbers from 1"),
        (["A"] * 10 + ["1", "2"] * 4, [ABC] * 18, "numbers from 0 or numbers from 1"),
        # Whether 1 is the second option, no, or says yes.
        (["1", "0.0"], [YES] * 2, "numbers from 0 or 1 for yes and 0 for no: '1' would be 'No' or 'Yes'"),
        (["1", "0"], [YES, ("No", "Yes")], "1 for yes and 0 for no"),
        (["1", "0"], [("Present", "Absent"), ("pneumonia", "No pneumonia")], "1 for yes and 0 for no"),
        # One question of another kind does not show it, nor does a half of texts.
        (["1", "0", "2"], [YES, YES, ABC], "1 for yes and 0 for no: '1' would be 'No' or 'Yes'"),
        (["CT"] * 9 + ["0", "1"] * 4, [ABC] * 9 + [YES] * 8, "1 for yes and 0 for no"),
        (["B", "A"], [("B", "A")] * 2, "letters or texts of options"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    answers: list[str], options: list[tuple[str, ...]], message: str
) -> None:
    with pytest.raises(Ambiguous, match=message):
        settle(answers, options, None)
    assert settle(answers, options, "index_from_1") == ("index_from_1",)
