"""The trainings of a matrix: what is begun, what is repeated, and what ends them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import matrix
from benchmarks.helpers.matrix_settings import MatrixSettings, Trained, load_matrix_settings, rows
from tests.repository import REPOSITORY

MATRICES = REPOSITORY / "configs" / "matrix"


def test_a_failed_training_ends_the_rest_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_matrix_settings(MATRICES / "phantoms.yaml").model_copy(update={"out": tmp_path})
    planned = [row.slug for row in rows(settings)]
    broken, tried = {planned[1]}, []

    def train(_: MatrixSettings, row: Trained) -> float:
        tried.append(row.slug)
        if row.slug in broken:
            raise RuntimeError(f"{row.slug} is broken")
        time.sleep(0.01)
        return 1.0

    def trained() -> list[str]:
        return [json.loads(line)["run"] for line in (tmp_path / "trained.jsonl").read_text().splitlines()]

    monkeypatch.setattr(matrix, "train_row", train)
    with pytest.raises(RuntimeError, match="is broken"):
        matrix._train_missing(settings, ThreadPoolExecutor(2))
    assert planned[0] in trained()
    assert set(trained()) == set(tried) - broken != set(planned) - broken
    broken.clear()
    tried.clear()
    before = trained()
    matrix._train_missing(settings, ThreadPoolExecutor(2))
    assert set(tried) == set(planned) - set(before)
    assert sorted(trained()) == sorted(planned)


def test_an_interrupted_matrix_begins_no_more_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_matrix_settings(MATRICES / "phantoms.yaml").model_copy(update={"out": tmp_path})
    tried = []

    def train(_: MatrixSettings, row: Trained) -> float:
        tried.append(row.slug)
        time.sleep(0.01)
        return 1.0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(matrix, "train_row", train)
    monkeypatch.setattr(matrix.AppendLog, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        matrix._train_missing(settings, ThreadPoolExecutor(2))
    assert len(tried) < len(list(rows(settings))) // 2
