"""Reading questions from the command line and from a file, and explaining answers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from medr1_ray.evaluation.answering import (
    Explained,
    _explain,
    _with_each_letter,
    make_question,
    read_questions,
    write_answers,
)
from medr1_ray.types import Likelihoods, Question


@pytest.fixture
def question() -> Question:
    return make_question("2", Path("/i.png"), " Which? ", "CT; MRI (T1, T2) ;X-ray")


def test_options_are_separated_by_semicolons(question: Question) -> None:
    assert question.text == "Which? A)CT, B)MRI (T1, T2), C)X-ray"
    for options in ("CT", "CT; CT", "", "; ".join(map(str, range(27)))):
        with pytest.raises(ValueError, match="2 to 26 different"):
            make_question("2", Path("/i.png"), "Which?", options)


def test_every_line_of_a_file_is_accounted_for(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("\ufeffimage,question,options\na.png,Which?,CT; MRI\nb.png,,CT; MRI\nc.png,What?,x\n", "utf-8")
    questions, problems = read_questions(file, tmp_path)
    assert [question.image_path for question in questions] == [str(tmp_path / "a.png")]
    assert problems.keys() == {3, 4}
    found = Explained(questions[0], "B", None, "because", "<answer>B</answer>", (0.25, 0.75))
    write_answers(tmp_path / "a.csv", [found], problems)
    with (tmp_path / "a.csv").open(newline="") as content:
        rows = list(csv.DictReader(content))
    assert [row["line"] for row in rows] == ["2", "3", "4"]
    assert (rows[0]["answer"], rows[0]["text"], rows[0]["p_A"], rows[0]["p_B"]) == ("B", "MRI", "0.2500", "0.7500")
    assert "p_C" not in rows[0], "as many columns as the longest question has options"
    assert rows[1]["problem"] == "the question is empty"


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("image,question\n")
    with pytest.raises(ValueError, match="no column 'options'"):
        read_questions(file, tmp_path)
    for header, found in (
        ("image;question;options", "'image;question;options'"),
        ("Image,question", "'Image', 'question'"),
        ("x" * 300, f"'{'x' * 199}\\.\\.\\."),
    ):
        file.write_text(f"{header}\n")
        with pytest.raises(ValueError, match=f"spelled so and divided by commas, and has {found}$"):
            read_questions(file, tmp_path)


def test_letters_are_weighed_after_what_was_thought(question: Question) -> None:
    thought = "<think>bone is white</think>"
    assert _with_each_letter(f"{thought}<answer>B</answer>", question, "think")[2] == f"{thought}<answer>C</answer>"
    assert _with_each_letter("<answer>B</answer><think>so</think>", question, "think_after")[0] == "<answer>A</answer>"
    assert _with_each_letter("bone", question, "think")[0] == "bone<answer>A</answer>"
    assert _with_each_letter("bone", question, "no_think")[0] == "<answer>A</answer>"


def test_an_answer_is_explained(question: Question) -> None:
    found = Likelihoods("2", np.log(np.array([0.1, 0.3, 0.1], np.float32)), np.ones(3, np.int32))
    each = _explain(question, "<think>bone is white</think><answer>B</answer>", found, "think")
    assert (each.letter, each.reasoning) == ("B", "bone is white")
    assert each.probabilities == pytest.approx((0.2, 0.6, 0.2))


def test_a_row_with_more_or_fewer_cells_than_the_header_is_a_problem_of_its_line(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    rows = [
        "image,question,options",
        "a.png,Which?,CT; MRI, with contrast; PET",  # line 2: the third option would be lost without a word
        "",
        'a.png,"Two',
        'lines",CT; MRI',
        "a.png,CT; MRI",
        "a.png,Which?,CT; MRI",
    ]
    file.write_text("\n".join(rows))
    questions, problems = read_questions(file, tmp_path)
    assert [(question.id, question.stem) for question in questions] == [("4", "Two\nlines"), ("7", "Which?")]
    assert problems == {
        2: "the row has 4 cells and the header 3; put a cell with a comma in quotes",
        6: "the row has 2 cells and the header 3; put a cell with a comma in quotes",
    }


def test_a_quote_that_is_not_closed_takes_no_rows_with_it(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text('image,question,options\na.png,Which?,"CT; MRI\nb.png,Which?,CT; MRI\n')
    with pytest.raises(ValueError, match=r"cannot be read \(unexpected end of data\)"):
        read_questions(file, tmp_path)
