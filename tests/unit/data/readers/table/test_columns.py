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
        # One column D alone is not an option.
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
            r"no column is known to hold the image; it has question, A, B, answer; name it with .*columns\.image",
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
            r"columns\.split=part is not a column of x\.csv; it has image",
        ),
        (["image", "question", "answer"], {"options": ("a",)}, r"columns\.options=a is not a column"),
        (["image", "question", "answer"], {"id": "a"}, r"columns\.id=a is not a column"),
        (["image", "question", "answer"], {"image": ""}, r"no column is known to hold the image"),
    ],
)
def test_what_cannot_be_told_is_one_error_with_the_columns(
    names: list[str], given: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        found(*names, **given)
