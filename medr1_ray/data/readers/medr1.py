"""Reader of Med-R1's annotation rows.

A row: `{"image": "Images/<dataset>/...", "problem": "<stem> A)x, B)y", "solution": "<answer> A </answer>"}`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from medr1_ray.data.questions import (
    MODALITIES,
    QUESTION_TYPES,
    UNKNOWN,
    canonical_modality,
    canonical_question_type,
)
from medr1_ray.data.readers.medr1_text import parse_solution, split_problem
from medr1_ray.data.readers.rows import ReadResult, image_path, read_rows, refuse_ambiguous_gold, text_of
from medr1_ray.types import Question


def read_medr1_files(root: Path, *patterns: str, images_needed: bool = True) -> list[ReadResult]:
    """Read, for each pattern, the annotation file `root / pattern`, or all files that match it (`*`), sorted by name.

    Ids begin with a file's stem, or with its path below `root` where another file of any pattern has the same stem.

    Raises:
        ValueError: if there is no such file, or one cannot be read or is not a list of rows.
    """
    found = [[file.relative_to(root).as_posix() for file in _files(root, pattern)] for pattern in patterns]
    stems = Counter(Path(file).stem for file in set().union(*found))
    results = []
    for files in found:
        names = [file if stems[Path(file).stem] > 1 else Path(file).stem for file in files]
        read = [read_medr1_rows(root, file, images_needed, name) for file, name in zip(files, names, strict=True)]
        results.append(
            ReadResult(
                tuple(question for result in read for question in result.questions),
                tuple(row for result in read for row in result.dropped),
            )
        )
    return results


def _files(root: Path, pattern: str) -> list[Path]:
    # A file name may contain characters that are special in patterns.
    files = [root / pattern] if (root / pattern).is_file() else sorted(root.glob(pattern))
    if not files:
        raise ValueError(
            f"{root / pattern}: no annotation file has this name or matches this pattern; check data.train_file and "
            "data.eval_file"
        )
    return files


def read_medr1_rows(root: Path, file: str, images_needed: bool = True, name: str | None = None) -> ReadResult:
    """Read the annotation file `root / file`; ids are `<name>:<row>`, where `name` defaults to the file's stem.

    Rows name neither modality nor question type, but each released file is named after one of them
    (`X-Ray_test.json`, `Lesion Grading_train.json`): that one is taken from the name, the other is `Unknown`.
    Nothing is guessed from the wording. With `images_needed`, rows whose image is not on disk are dropped.

    Raises:
        ValueError: if the file cannot be read or is not a list of rows.
    """
    subject = re.sub(r"_(train|test)$", "", Path(file).stem)
    modality, question_type = canonical_modality(subject), canonical_question_type(subject)
    modality = modality if modality in MODALITIES else UNKNOWN
    question_type = question_type if question_type in QUESTION_TYPES else UNKNOWN

    def question(row: dict[str, Any], id_: str) -> Question:
        image = text_of(row, "image")
        stem, options = split_problem(text_of(row, "problem"))
        answer = parse_solution(text_of(row, "solution"), len(options))
        refuse_ambiguous_gold(options, answer)
        parts = PurePosixPath(image).parts
        return Question(
            id=id_,
            image_path=image_path(root, image, images_needed),
            stem=stem,
            options=options,
            answer=answer,
            modality=modality,
            question_type=question_type,
            dataset=parts[1] if len(parts) > 2 else parts[0],
        )

    return read_rows(root, root / file, question, name)
