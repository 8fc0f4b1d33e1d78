"""Reader of OmniMedVQA's own layout (arXiv 2402.09181): `QA_information/Open-access/*.json` and `Images/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medr1_ray.data.questions import RowError, canonical_modality, canonical_question_type
from medr1_ray.data.readers.rows import (
    ReadResult,
    image_path,
    read_rows,
    refuse_ambiguous_gold,
    relative_path,
    text_of,
)
from medr1_ray.types import LETTERS, Question

QUESTIONS = "QA_information"
OPEN_ACCESS = "Open-access"


def read_omnimedvqa(root: Path, images_needed: bool = True) -> ReadResult:
    """Read the open-access questions under `root`, the part that Med-R1 uses.

    The restricted-access part is not read: its images must be requested from their sources. Files are read in the
    order of their names, so the result depends only on the files. With `images_needed`, rows whose image is not on
    disk are dropped.

    Raises:
        ValueError: if there are no annotation files, or one is not a list of rows.
    """
    folder = root / QUESTIONS / OPEN_ACCESS
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(
            f"{folder}: no annotation files (*.json) in this folder; the root of the dataset must hold OmniMedVQA's "
            "folders QA_information/Open-access and Images"
        )
    results = [read_annotation_file(root, file, images_needed) for file in files]
    return ReadResult(
        tuple(question for result in results for question in result.questions),
        tuple(row for result in results for row in result.dropped),
    )


def read_annotation_file(root: Path, file: Path, images_needed: bool) -> ReadResult:
    """Read one file under `QA_information`; ids are `<name>:<row>` with the name that `file_name` returns.

    Raises:
        ValueError: if the file cannot be read or is not a list of rows.
    """
    return read_rows(root, file, lambda row, id_: _question(root, row, id_, images_needed), file_name(root, file))


def file_name(root: Path, file: Path) -> str:
    """Return the name with which the ids of a file's questions begin: its stem, or its path if not in Open-access."""
    name = Path(relative_path(root, file)).with_suffix("")
    return name.name if name.parent == Path(QUESTIONS, OPEN_ACCESS) else name.as_posix()


def _question(root: Path, row: dict[str, Any], id_: str, images_needed: bool) -> Question:
    options = _options(row)
    gold = text_of(row, "gt_answer")
    if gold not in options:
        raise RowError("gold answer not among the options")
    answer = options.index(gold)
    refuse_ambiguous_gold(options, answer)
    return Question(
        id=id_,
        image_path=image_path(root, text_of(row, "image_path"), images_needed),
        stem=text_of(row, "question"),
        options=options,
        answer=answer,
        # One source file has the key `modality` instead; hence the row of modality "unknown" in Med-R1's files.
        modality=canonical_modality(text_of(row, "modality_type" if "modality_type" in row else "modality")),
        question_type=canonical_question_type(text_of(row, "question_type")),
        dataset=text_of(row, "dataset"),
    )


def _options(row: dict[str, Any]) -> tuple[str, ...]:
    given = {key for key in row if key.startswith("option_") and row[key] not in (None, "")}
    if len(given) < 2:
        raise RowError("fewer than two options")
    if len(given) > len(LETTERS):
        raise RowError(f"more than {len(LETTERS)} options")
    keys = [f"option_{letter}" for letter in LETTERS[: len(given)]]
    if given != set(keys):
        raise RowError("a letter is missing among the options")
    return tuple(text_of(row, key) for key in keys)
