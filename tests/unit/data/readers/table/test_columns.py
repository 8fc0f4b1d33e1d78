"""Which column holds what."""

from __future__ import annotations

import pytest

from medr1_ray.config import TableColumns
from medr1_ray.data.readers.table.columns import Columns, find_columns


def found(*names: str, **given: str | tuple[str, ...]) -> Columns:
    return find_columns(names, TableColumns(**given), "x.csv")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "image", "options", "answer"),
    [
        (["image", "question", "A", "B", "C", "answer"], "image", ("A", "B", "C"), "answer"),
        (
            ["Image_Path", "Question", "option_A", "option_B", "gt_answer"],
            "Image_Path",
            ("option_A", "option_B"),
            "gt_answer",
        ),
        (["img", "query", "choices", "label"], "img", ("choices",), "label"),
        (
            ["Figure_path", "Question", "Choice A", "Choice B", "Answer"],
            "Figure_path",
            ("Choice A", "Choice B"),
            "Answer",
        ),
        (["file name", "question", "opb", "opa", "Correct-Option"], "file name", ("opa", "opb"), "Correct-Option"),
        (
            ["image", "question", "option1", "option2", "option3", "answer"],
            "image",
            ("option1", "option2", "option3"),
            "answer",
        ),
        (["image", "question", "choice_0", "choice_1", "answer"], "image", ("choice_0", "choice_1"), "answer"),
        (["image", "question", "answer"], "image", (), "answer"),
        # The plain name is taken before others; a list of options before single columns.
        (["image", "file_name", "question", "options", "A", "B", "answer", "label"], "image", ("options",), "answer"),
        # Coordinates are none, with options or without.
        (["image", "question", "A", "B", "x", "y", "answer"], "image", ("A", "B"), "answer"),
        (["image", "question", "x", "y", "answer"], "image", (), "answer"),
        # One column D alone is not an option, and years are none.
        (["image", "question", "answer", "2019", "2020"], "image", (), "answer"),
        (["image", "question", "answer", "D"], "image", (), "answer"),
    ],
)
def test_usual_names(names: list[str], image: str, options: tuple[str, ...], answer: str) -> None:
    columns = found(*names)
    assert (columns.image, columns.options, columns.answer) == (image, options, answer)


def test_what_a_table_may_have_besides() -> None:
    base = ["image", "question", "A", "B", "answer"]
    assert found(*base).group is None
    columns = found(*base, "study_id", "Patient ID", "Split", "modality_type", "dataset", "task", "id")
    # The patient is the larger group; an id is only taken if it is named.
    assert (columns.group, columns.split, columns.modality) == ("Patient ID", "Split", "modality_type")
    assert (columns.source, columns.question_type, columns.id) == ("dataset", "task", None)
    assert found(*base, "study_id", "patient", group="").group is None
    assert found(*base, "study_id", "patient", group="study_id", id="answer").group == "study_id"


def test_options_may_be_named() -> None:
    names = ["image", "question", "yes", "no", "A", "B", "answer"]
    assert found(*names, options=("yes", "no")).options == ("yes", "no")
    assert found(*names, options="yes").options == ("yes",)
    assert found(*names, options="").options == ()


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (
            ["question", "A", "B", "answer"],
            {},
            r"x\.csv: no column is known to hold the image; it has question, A, .*; give .*columns\.image=NAME \(",
        ),
        (["image", "text", "A", "B", "answer"], {}, r"no column .* the question"),
        (
            ["img", "path", "question", "answer"],
            {},
            r"img and path may each hold the image; it has .*columns\.image=img",
        ),
        (["image", "question", "gold", "label"], {}, r"gold and label may each hold the answer"),
        (
            ["image", "question", "A", "B", "option_A", "option_B", "answer"],
            {},
            r"A, B or option_A, option_B may hold the options",
        ),
        (
            ["image", "question", "answer"],
            {"split": "part"},
            r"x\.csv: data\.table\.columns\.split=part is not a column; it has image",
        ),
        (["image", "question", "answer"], {"options": ("a",)}, r"columns\.options=a is not a column"),
        (["image", "question", "answer"], {"id": "a"}, r"columns\.id=a is not a column"),
        (["image", "question", "answer"], {"image": ""}, r"no column is known to hold the image"),
        (
            ["scan", "text", "A", "B", "gold", "label"],
            {"split": "part", "id": "row", "modality": ""},
            r"gold and label may each hold the answer; .*split=part is not a column; .*id=row is not a column; no "
            r"column is known to hold the image or the question; it has scan, text, .*; give "
            r"data\.table\.columns\.answer=gold data\.table\.columns\.split=NAME .*\(prepare: --columns answer=gold "
            r"split=NAME id=NAME image=NAME question=NAME\)$",
        ),
        (
            ["image", "question", "option_A", "option_C", "answer"],
            {},
            r"option_A, option_C seem to be the options, but there is none for B \(an empty .*--columns options=NAME\)",
        ),
        (["image", "question", "B", "C", "answer"], {}, r"B, C seem to be the options, but there is none for A "),
        (["image", "question", "opt2", "opt4", "answer"], {}, r"none for 1, 3 "),
        (["image", "question", "opt0", "opt2", "answer"], {}, r"none for 1 "),
        (
            ["image", "question", *(f"option{n}" for n in range(1, 28)), "answer"],
            {},
            r"option1, .*, option27 seem to be the options, but they are 27, and a question can have 26 at most",
        ),
    ],
)
def test_what_cannot_be_told_is_one_error_with_the_columns(
    names: list[str], given: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        found(*names, **given)
