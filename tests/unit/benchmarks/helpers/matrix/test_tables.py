"""Cells, estimates and tables of the matrix, from answers whose results follow by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.helpers.matrix.evaluation import evaluation_folder
from benchmarks.helpers.matrix.tables import cell_replicates, collect, write_tables
from tests.unit.benchmarks.helpers.matrix.experiments import answered, in_domain


def test_cells_are_means_by_column_and_drawn_by_image() -> None:
    # Image a has a question in each column, image b one in the first; a replicate draws aa, ab or bb.
    correct = np.array([[1.0, 0.0, 0.0]])
    cells = cell_replicates(correct, np.array([0, 1, 0]), ["a", "a", "b"], replicates=400)
    assert cells.shape == (401, 1, 2)
    assert cells[0, 0].tolist() == [0.5, 0.0]
    assert set(cells[1:, 0, 0].tolist()) == {0.0, 0.5, 1.0}
    assert np.isnan(cells[cells[:, 0, 0] == 0.0, 0, 1]).all(), "without image a, the second column is empty"


def test_a_matrix_of_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grpo, sft = collect(answered(tmp_path, monkeypatch, in_domain))
    cells = {(cell.row, cell.column): cell for cell in grpo.cells}
    diagonal = cells["Lesion Grading", "Lesion Grading"]
    assert (diagonal.n, diagonal.images, diagonal.accuracy, diagonal.interval[1]) == (20, 10, 1, 1)
    assert diagonal.interval[0] == pytest.approx(0.6915, abs=1e-4)
    assert (diagonal.looks, diagonal.beats_prior, diagonal.blind_prior) == (True, False, 1)
    elsewhere = cells["Lesion Grading", "Disease Diagnosis"]
    assert (elsewhere.accuracy, elsewhere.chance) == (0.1, 0.5)
    assert cells["base", "Disease Diagnosis"].accuracy == 0
    estimates = {each.name: each.value for each in grpo.estimates}
    assert estimates["mean of the diagonal"] == estimates["diagonal minus start model, Lesion Grading"] == 1
    assert estimates["mean off the diagonal"] == pytest.approx(0.1)
    assert estimates["off the diagonal minus sft, no_think"] == pytest.approx(0.1)
    assert {each.name: each.value for each in sft.estimates}["diagonal minus grpo, no_think"] == 0


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = answered(tmp_path, monkeypatch, in_domain)
    matrices = collect(settings)
    write_tables(settings.out, matrices)
    with (settings.out / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 6 * 5
    assert lines[0]["row"] == "base"
    assert json.loads((settings.out / "results.json").read_text())[0]["cells"][5]["accuracy"] == 1
    page = (settings.out / "results.md").read_text()
    assert "| base | 0*° [0, 31] |" in page
    assert "100° [69, 100]" in page


def test_a_question_that_one_model_could_not_be_put_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = answered(tmp_path, monkeypatch, in_domain)
    file = evaluation_folder(settings, None, "question_type", "no_think") / "answers" / "image.jsonl"
    file.write_text(file.read_text().replace('"correct": false', '"left_out": "prompt too long"', 1))
    with pytest.raises(ValueError, match="question_type-no_think-base left out 1 test questions"):
        collect(settings)
