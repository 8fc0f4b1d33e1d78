"""The trainings of a matrix: what is begun, what is repeated, and what ends them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import matrix
from benchmarks.helpers.matrix.settings import MatrixSettings, Trained, load_matrix_settings, rows
from medr1_ray.data.dataset import Dataset
from medr1_ray.types import Question
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


QUESTION = Question("q", "/q.png", "What?", ("x", "y"), 0, "CT", "Disease Diagnosis", "d")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("matrix", r"holds a matrix with matrix\.questions_per_column 4, and now it is 5 "),
        ("file", r"holds a matrix with runs\.train\.seed 0, and now it is 1 .*set it back, or choose another `out`"),
        ("questions", r"holds a matrix with questions '\w+', and now it is '\w+' "),
        ("version", r"settings\.json: has no 'runs'; it is of an earlier version; choose another `out`"),
        ("how it runs", None),
        ("code", None),
    ],
)
def test_a_matrix_goes_on_only_as_what_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: str,
    said: str | None,
) -> None:
    run, out = tmp_path / "run.yaml", tmp_path / "out"
    questions = [(QUESTION,)]
    monkeypatch.setattr(matrix, "everything", lambda settings: Dataset(questions[0], (), ()))

    def claim(per_column: int = 4, seed: int = 0, minutes: int = 15) -> None:
        run.write_text(
            f"run: {{dir: r, save_minutes: {minutes}}}\ntrain: {{steps: 1, seed: {seed}}}\n"
            f"data: {{format: phantoms, root: p}}\nrollout: {{engine: {{hf_token: hunter2}}, threads: {minutes}}}\n"
            f"reward: {{memory_gib: {minutes}}}\n"
        )
        settings = {
            "out": out,
            "configs": [run],
            "methods": {"grpo": {"command": "train"}},
            "axes": {"no_think": {"modality": []}},
            "questions_per_column": per_column,
        }
        matrix._claim(MatrixSettings.model_validate(settings))

    claim()
    claim()
    assert "hunter2" not in (out / "settings.json").read_text()
    assert capsys.readouterr().err == ""
    if changed == "questions":
        questions[0] = (replace(QUESTION, answer=1),)
    if changed == "version":
        (out / "settings.json").write_text('{"matrix": {}}')
    if changed == "code":
        monkeypatch.setattr(matrix, "code_digest", lambda: "other")
    again = {"matrix": {"per_column": 5}, "file": {"seed": 1}, "how it runs": {"minutes": 5}}.get(changed, {})
    if said:
        with pytest.raises(ValueError, match=said):
            claim(**again)
    else:
        claim(**again)
    told = "was begun with other code of medr1_ray; what is done there is kept"
    assert (told in capsys.readouterr().err) == (changed == "code")
