"""Named splits: grouped ones, and Med-R1's released ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from medr1_ray.data.prepare.leakage import leakage
from medr1_ray.data.prepare.recipes import grouped_splits, released_splits, slug
from medr1_ray.data.readers.prepared import PARTS, split_digest
from tests.unit.data.prepare.manifest_rows import row


def test_grouped_splits_agree_and_leak_nothing() -> None:
    rows = [
        row(
            f"{modality}{volume}-{index}",
            f"{modality}{volume}_{index}",
            modality=modality,
            question_type=("Lesion Grading", "Disease Diagnosis")[index % 2],
        )
        for modality in ("CT", "MRI")
        for volume in range(40)
        for index in range(3)
    ]
    rows.append(row("bad", left_out="image file not found", image_hash=None))
    splits = {split.name: split for split in grouped_splits(rows, seed=0)}
    assert list(splits) == ["grouped", "modality-ct", "modality-mri", "type-disease-diagnosis", "type-lesion-grading"]
    grouped = {part: set(ids) for part, ids in splits["grouped"].parts.items()}
    assert {part: len(ids) for part, ids in grouped.items()} == {"train": 180, "validation": 12, "test": 48}
    by_id = {one.id: one for one in rows}
    for split in splits.values():
        assert all(set(split.parts[part]) <= grouped[part] for part in PARTS)
        train, test = ([by_id[id_] for id_ in split.parts[part]] for part in ("train", "test"))
        leak = leakage(train, test)
        assert leak is not None
        assert (leak.shared_image, leak.shared_scan) == (0, 0)
    assert {by_id[id_].modality for id_ in splits["modality-mri"].parts["test"]} == {"MRI"}
    again = next(grouped_splits(rows[::-1], seed=0))
    assert {part: set(ids) for part, ids in again.parts.items()} == grouped
    assert next(grouped_splits(rows, seed=1)).parts != splits["grouped"].parts
    digest = split_digest(splits["grouped"], rows)
    assert digest == split_digest(splits["grouped"], rows)
    changed = [dataclasses.replace(one, stem="Which?") if one.id == "CT0-0" else one for one in rows]
    assert split_digest(splits["grouped"], changed) != digest


def write_released(folder: Path, file: str, images: str, answer: str = "A") -> None:
    """Write a file of Med-R1's with a row for each letter, which is the name of its image."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": f"Images/Chest/{image}.png", "problem": "What? A)x, B)y", "solution": f"<answer> {answer} </answer>"}
        for image in images
    ]
    path.write_text(json.dumps(rows))


def test_released_families_are_splits_of_their_own(tmp_path: Path) -> None:
    rows = [*(row(f"Chest:{image}", image) for image in "abcdefgh"), row("bad", "z", left_out="image file is empty")]
    folder = tmp_path / "Splits"
    write_released(folder, "modality/train/CT_train.json", "cabb")  # b twice, and there is only one row of it
    write_released(folder, "modality/test/CT_test.json", "dz")
    write_released(folder, "modality/test/MRI_test.json", "d", answer="B")  # another answer than the manifest's
    write_released(folder, "question_type/train/Lesion Grading_train.json", "d")
    write_released(folder, "question_type/test/Lesion Grading_test.json", "ab")
    splits = {split.name: split for split in released_splits(rows, tmp_path, folder)}
    assert list(splits) == ["medr1", "medr1-question-type"]
    # In the order of the manifest, whatever the order of the files.
    assert splits["medr1"].parts == {
        "train": ("Chest:a", "Chest:b", "Chest:c"),
        "validation": (),
        "test": ("Chest:d",),
    }
    assert splits["medr1"].left_out == {
        "released train row that no usable row of the manifest matches": 1,
        "released test row that no usable row of the manifest matches": 2,
        "usable row that was not released": 4,
    }
    other = splits["medr1-question-type"].parts
    assert (other["train"], other["test"]) == (("Chest:d",), ("Chest:a", "Chest:b"))


def test_equal_rows_are_matched_one_to_one(tmp_path: Path) -> None:
    rows = [row("first", "a"), row("second", "a"), row("third", "a")]
    write_released(tmp_path / "Splits", "train.json", "a")
    write_released(tmp_path / "Splits", "test.json", "a")
    (split,) = released_splits(rows, tmp_path, tmp_path / "Splits")
    assert split.name == "medr1", "the only one, whatever its folder's name"
    assert (split.parts["train"], split.parts["test"]) == (("first",), ("second",))
    assert split.left_out == {"usable row that was not released": 1}


def test_a_folder_without_training_and_test_files_is_refused(tmp_path: Path) -> None:
    write_released(tmp_path, "Splits/train.json", "a")
    with pytest.raises(ValueError, match=r"--medr1 .*neither this folder nor one in it holds train/\*\.json and test"):
        list(released_splits([row("a")], tmp_path, tmp_path / "Splits"))


@pytest.mark.parametrize(
    ("name", "file"), [("X-Ray", "x-ray"), ("Other Biological Attributes", "other-biological-attributes"), ("(a)", "a")]
)
def test_names_of_splits_are_names_of_files(name: str, file: str) -> None:
    assert slug(name) == file
