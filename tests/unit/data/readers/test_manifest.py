"""The manifest on disk: what was written is read, and each row is the question that it was made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from medr1_ray.data.prepare.writing import write_manifest
from medr1_ray.data.readers.manifest import MANIFEST_FILE, ManifestRow, digest_of, read_manifest
from medr1_ray.types import Question
from tests.unit.data.prepare.manifest_rows import row


def test_every_field_is_read_as_it_was_written_also_none(tmp_path: Path) -> None:
    rows = [
        row("a", width=9, height=7, remark="one colour only", options=("x", "", "ü, \u2028")),
        ManifestRow("QA/notes.txt", "QA/notes.txt", None, left_out="file is no annotation file (.json)"),
        row("b", row=3),
    ]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows


def test_a_row_is_the_question_that_it_was_made_of() -> None:
    changes = {"options": ("x", "y", "z"), "gold_letter": "C", "modality": "MRI", "dataset": "Knee", "stem": "Which?"}
    asked = row("Knee:7", "v1_2", **changes).question(Path("/data"))
    assert asked == Question(
        "Knee:7", "/data/Images/Chest/v1_2.png", "Which?", ("x", "y", "z"), 2, "MRI", "Lesion Grading", "Knee"
    )


def test_what_is_no_manifest_of_this_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.parquet: cannot be read as a manifest .*medr1_ray\.data\.prepare"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="cannot be read as a manifest"):
        read_manifest(tmp_path)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"], "options": [["x"]]}), tmp_path / MANIFEST_FILE)
    with pytest.raises(ValueError, match="cannot be read as a manifest"):
        read_manifest(tmp_path)


def test_the_digest_covers_every_field_and_the_order() -> None:
    rows = [row("a"), row("b")]
    digest = digest_of(rows)
    assert digest_of([row("a"), row("b")]) == digest
    assert len(digest) == 32
    assert digest_of(rows[::-1]) != digest
    for field in dataclasses.fields(ManifestRow):
        changed = [dataclasses.replace(rows[0], **{field.name: "changed"}), rows[1]]
        assert digest_of(changed) != digest, field.name
