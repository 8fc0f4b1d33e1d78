"""Rows in OmniMedVQA's own layout become the right questions, or are dropped for the right reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.data.readers.medr1 import read_medr1_rows
from medr1_ray.data.readers.omnimedvqa import read_annotation_file, read_omnimedvqa
from medr1_ray.data.readers.rows import dropped_by_reason
from tests.unit.data.prepare.bad_data import GOOD, ROWS, bad_rows

ROW = {
    "dataset": "Chest",
    "question_id": "Chest_0001",
    "question_type": "Modality Recognition",
    "question": "What is used?",
    "gt_answer": "CT",
    "image_path": "Images/Chest/a.png",
    "option_A": "MRI",
    "option_B": "CT",
    "modality_type": "CT(Computed Tomography)",
}


def write_omnimedvqa(root: Path, rows: Any, name: str = "Chest") -> None:
    (root / "Images" / "Chest").mkdir(parents=True, exist_ok=True)
    (root / "Images" / "Chest" / "a.png").touch()
    folder = root / "QA_information" / "Open-access"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows))


def test_omnimedvqa_row(tmp_path: Path) -> None:
    write_omnimedvqa(tmp_path, [ROW])
    (question,) = read_omnimedvqa(tmp_path).questions
    assert question.id == "Chest:0"
    assert question.image_path == str(tmp_path / "Images/Chest/a.png")
    assert (question.stem, question.options, question.answer) == ("What is used?", ("MRI", "CT"), 1)
    assert (question.modality, question.question_type, question.dataset) == (
        "CT",
        "Modality Recognition",
        "Chest",
    )


def test_omnimedvqa_key_modality_and_paths_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {key: value for key, value in ROW.items() if key != "modality_type"} | {"modality": "X-Ray"}
    write_omnimedvqa(tmp_path, [row])
    monkeypatch.chdir(tmp_path.parent)
    (question,) = read_omnimedvqa(Path(tmp_path.name)).questions
    assert question.modality == "X-Ray"
    assert question.image_path == str(tmp_path / "Images/Chest/a.png")


def test_a_bad_row_is_dropped_with_its_reason(tmp_path: Path) -> None:
    write_omnimedvqa(tmp_path, [GOOD, *bad_rows()])
    result = read_annotation_file(tmp_path, tmp_path / "QA_information/Open-access/Chest.json", images_needed=False)
    assert [question.id for question in result.questions] == ["Chest:0"]
    assert {dropped.file for dropped in result.dropped} == {"QA_information/Open-access/Chest.json"}
    assert [dropped.row for dropped in result.dropped] == list(range(1, 1 + len(ROWS)))
    found = dict(zip(ROWS, (dropped.reason for dropped in result.dropped), strict=True))
    assert found == {kind: reason for kind, (_, reason) in ROWS.items()}


def test_a_row_without_its_image_is_dropped_where_images_are_needed(tmp_path: Path) -> None:
    write_omnimedvqa(tmp_path, [ROW, ROW | {"image_path": "Images/Chest/b.png"}])
    result = read_omnimedvqa(tmp_path)
    assert [question.id for question in result.questions] == ["Chest:0"]
    assert dropped_by_reason(result.dropped) == {"image file not found": 1}
    assert len(read_omnimedvqa(tmp_path, images_needed=False).questions) == 2


def test_no_image_is_outside_of_the_dataset(tmp_path: Path) -> None:
    outside = [ROW | {"image_path": path} for path in ("/etc/passwd", "../secret.png", "Images/Chest/link.png")]
    write_omnimedvqa(tmp_path / "data", [ROW, *outside])
    (tmp_path / "data" / "Images" / "Chest" / "link.png").symlink_to("/etc/passwd")
    assert dropped_by_reason(read_omnimedvqa(tmp_path / "data").dropped) == {
        "image path leads out of the dataset's folder": 2,
        "image is a link that leads out of the dataset's folder": 1,
    }


def test_repeated_wrong_option_is_kept(tmp_path: Path) -> None:
    write_omnimedvqa(tmp_path, [ROW | {"option_C": "MRI"}])
    assert read_omnimedvqa(tmp_path).questions[0].options == ("MRI", "CT", "MRI")


def test_broken_files_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no annotation files"):
        read_omnimedvqa(tmp_path)
    write_omnimedvqa(tmp_path, {"rows": []})
    with pytest.raises(ValueError, match=r"Chest\.json: holds a dict"):
        read_omnimedvqa(tmp_path)
    write_omnimedvqa(tmp_path, ["row"])
    assert dropped_by_reason(read_omnimedvqa(tmp_path).dropped) == {"row is not an object": 1}
    with pytest.raises(ValueError, match=r"none\.json: cannot be read"):
        read_medr1_rows(tmp_path, "none.json")


def test_files_are_read_by_name_whatever_the_order_in_which_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", "c"):
        write_omnimedvqa(tmp_path, [ROW], name)
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: sorted(listed(self, pattern), reverse=True))
    assert [question.id for question in read_omnimedvqa(tmp_path).questions] == ["a:0", "b:0", "c:0"]


def test_options_beyond_h_are_read_and_none_is_left_out_silently(tmp_path: Path) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    many = ROW | {f"option_{letter}": f"text {letter}" for letter in letters} | {"gt_answer": "text Z"}
    write_omnimedvqa(tmp_path, [many, many | {"option_AA": "one more"}, ROW | {"option_Other": "PET"}])
    result = read_omnimedvqa(tmp_path)
    (question,) = result.questions
    assert (len(question.options), question.gold_letter) == (26, "Z")
    assert dropped_by_reason(result.dropped) == {"more than 26 options": 1, "a letter is missing among the options": 1}
