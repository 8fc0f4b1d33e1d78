"""Med-R1's rows become the right questions, or are dropped for the right reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.data.readers.medr1 import read_medr1_files, read_medr1_rows
from medr1_ray.data.readers.omnimedvqa import read_omnimedvqa
from medr1_ray.data.readers.rows import dropped_by_reason
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.types import Question


def test_medr1_file_name_gives_modality_or_question_type(tmp_path: Path) -> None:
    row = {"image": "Images/Chest/a.png", "problem": "What? A)x, B)y", "solution": "<answer> B </answer>"}
    twice = row | {"problem": "What? A)y, B)y"}
    for name in ("OCT (Optical Coherence Tomography_test.json", "Lesion Grading_train.json"):
        (tmp_path / name).write_text(json.dumps([row, twice]))
    result = read_medr1_rows(tmp_path, "OCT (Optical Coherence Tomography_test.json", images_needed=False)
    (question,) = result.questions
    assert (question.modality, question.question_type, question.dataset) == ("OCT", "Unknown", "Chest")
    assert (question.answer, question.text) == (1, "What? A)x, B)y")
    assert dropped_by_reason(result.dropped) == {"gold option occurs twice": 1}
    (question,) = read_medr1_rows(tmp_path, "Lesion Grading_train.json", images_needed=False).questions
    assert (question.modality, question.question_type) == ("Unknown", "Lesion Grading")
    assert dropped_by_reason(read_medr1_rows(tmp_path, "Lesion Grading_train.json").dropped) == {
        "image file not found": 1,
        "gold option occurs twice": 1,
    }


def test_every_released_medr1_row_is_read_word_for_word_and_its_gold_answer_counts(shared_data: Path) -> None:
    root = shared_data / "medr1_splits"
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("modality/*/*.json"))
    assert len(files) == 16
    by_modality: Counter[str] = Counter()
    by_options: Counter[int] = Counter()
    # Many rows offer the same options, which are graded alike.
    offers: dict[tuple[tuple[str, ...], int], Question] = {}
    for file in files:
        rows = json.loads((root / file).read_text())
        result = read_medr1_rows(root, file, images_needed=False)
        assert result.dropped == ()
        # Joined again, the parts are the row, word for word.
        assert [question.text for question in result.questions] == [row["problem"] for row in rows]
        assert [f"<answer> {question.gold_letter} </answer>" for question in result.questions] == [
            row["solution"] for row in rows
        ]
        by_modality.update(question.modality for question in result.questions)
        by_options.update(len(question.options) for question in result.questions)
        offers.update({(question.options, question.answer): question for question in result.questions})
    for question in offers.values():
        gold = question.options[question.answer]
        for answer in (question.gold_letter, gold, f"{question.gold_letter}) {gold}"):
            parsed = parse_answer(f"<answer>{answer}</answer>", question, "no_think")
            assert parsed.letter == question.gold_letter, f"{question.text}: {answer}"
    # Train plus test as the paper's authors released them; of MRI only the test file is in the folder.
    assert by_modality == {
        "CT": 12567 + 3241,
        "MRI": 6370,
        "X-Ray": 6301 + 1615,
        "Ultrasound": 8917 + 2074,
        "Dermoscopy": 5373 + 1306,
        "Fundus Photography": 4300 + 1098,
        "OCT": 3798 + 848,
        "Microscopy": 4570 + 1110,
        "Unknown": 1,
    }
    # Counted independently, by searching the rows for ", C)" and ", D)".
    assert by_options == {4: 56589, 3: 122, 2: 6778}


def test_realmini_is_the_same_in_both_layouts(shared_data: Path) -> None:
    root = shared_data / "realmini"
    own = read_omnimedvqa(root)
    rows = [read_medr1_rows(root, f"Splits/{part}.json") for part in ("train", "test")]
    assert own.dropped == rows[0].dropped == rows[1].dropped == ()
    assert (len(own.questions), len(rows[0].questions), len(rows[1].questions)) == (395, 316, 79)

    def content(questions: Any) -> Counter[tuple[str, str, str]]:
        return Counter((question.image_path, question.text, question.gold_letter) for question in questions)

    assert content(own.questions) == content(rows[0].questions) + content(rows[1].questions)


def test_a_pattern_reads_all_files_that_match(tmp_path: Path) -> None:
    folder = tmp_path / "Splits" / "train"
    folder.mkdir(parents=True)
    row = {"image": "Images/a/1.png", "problem": "Which? A)x, B)y", "solution": "<answer> B </answer>"}
    for name in ("X-Ray_train", "CT(Computed Tomography)_train", "OCT (Optical Coherence Tomography_test"):
        (folder / f"{name}.json").write_text(json.dumps([row, {}]))
    (result,) = read_medr1_files(tmp_path, "Splits/train/*_train.json", images_needed=False)
    assert [question.modality for question in result.questions] == ["CT", "X-Ray"]
    assert len({question.id for question in result.questions}) == 2
    assert len(result.dropped) == 2
    (one,) = read_medr1_files(tmp_path, "Splits/train/CT(Computed Tomography)_train.json", images_needed=False)
    assert one.questions == result.questions[:1]
    with pytest.raises(ValueError, match=r"no annotation file has this name or matches .*; check data\.train_file"):
        read_medr1_files(tmp_path, "Splits/train/MRI*.json")


def test_files_of_one_name_in_several_folders_give_different_ids(tmp_path: Path) -> None:
    row = {"image": "Images/a/1.png", "problem": "Which? A)x, B)y", "solution": "<answer> B </answer>"}
    for name in ("CT/test", "MRI/test", "MRI/train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))

    def ids(*patterns: str) -> list[list[str]]:
        results = read_medr1_files(tmp_path, *patterns, images_needed=False)
        return [[question.id for question in result.questions] for result in results]

    assert ids("*/train.json", "*/test.json") == [["train:0"], ["CT/test.json:0", "MRI/test.json:0"]]
    assert ids("CT/test.json", "MRI/test.json") == [["CT/test.json:0"], ["MRI/test.json:0"]]
    # The same file twice is one file.
    assert ids("CT/test.json", "CT/*.json") == [["test:0"], ["test:0"]]


def test_files_are_read_by_name_whatever_the_order_in_which_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"image": "Images/a/1.png", "problem": "Which? A)x, B)y", "solution": "<answer> B </answer>"}
    for name in ("CT_train", "MRI_train", "OCT [1]_train"):
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: sorted(listed(self, pattern), reverse=True))
    (result,) = read_medr1_files(tmp_path, "*_train.json", images_needed=False)
    assert [question.id for question in result.questions] == ["CT_train:0", "MRI_train:0", "OCT [1]_train:0"]
    # Brackets are part of a name where a file has it, not a pattern.
    (question,) = read_medr1_files(tmp_path, "OCT [1]_train.json", images_needed=False)[0].questions
    assert question.id == "OCT [1]_train:0"


@pytest.mark.parametrize(
    ("image", "dataset"), [("Images/Chest/sub/a.png", "Chest"), ("Chest/a.png", "Chest"), ("a.png", "a.png")]
)
def test_the_dataset_is_the_folder_below_images(tmp_path: Path, image: str, dataset: str) -> None:
    row = {"image": image, "problem": "Which? A)x, B)y", "solution": "<answer> B </answer>"}
    (tmp_path / "CT_train.json").write_text(json.dumps([row]))
    (question,) = read_medr1_rows(tmp_path, "CT_train.json", images_needed=False).questions
    assert question.dataset == dataset
