"""The matrix experiment without an engine: what is trained with which settings, and what is made of the answers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks import matrix, matrix_evaluation
from benchmarks.matrix_evaluation import evaluate_all, evaluation_folder, held_out_questions
from benchmarks.matrix_settings import (
    NAMES,
    MatrixSettings,
    Trained,
    column_of,
    load_matrix_settings,
    overrides,
    rows,
    run_directory,
)
from benchmarks.matrix_tables import cell_replicates, collect, write_tables
from medr1_ray.config import tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.data.dataset import Dataset
from medr1_ray.types import Completions, Group, Mode, Prompt, Question, Rewards, Sampling, Span
from tests.repository import REPOSITORY

MATRICES = REPOSITORY / "configs" / "matrix"


@pytest.mark.parametrize(
    ("file", "models"),
    [("phantoms", 2 * (8 + 5 + 8)), ("omnimedvqa", 2 * 2 * (8 + 5))],
)
def test_the_experiments_have_the_matrices_of_the_paper(file: str, models: int) -> None:
    planned = list(rows(load_matrix_settings(MATRICES / f"{file}.yaml")))
    assert len({row.slug for row in planned}) == len(planned) == models


@pytest.mark.parametrize(
    ("file", "mode", "weighted"),
    [("phantoms", "think", False), ("omnimedvqa", "think", False), ("phantoms", "no_think", True)],
)
def test_methods_differ_in_nothing_that_the_data_depend_on(file: str, mode: Mode, weighted: bool) -> None:
    settings = load_matrix_settings(MATRICES / f"{file}.yaml")
    for name in NAMES["modality"]:
        made = {
            method: load_config(
                [REPOSITORY / path for path in settings.configs],
                overrides(settings, Trained("modality", mode, method, name)),
            )
            for method in settings.methods
        }
        assert made["grpo"].data == made["sft"].data
        assert made["grpo"].data.modalities == (name,)
        assert bool(made["grpo"].data.sampling_weights) == weighted
        assert made["grpo"].mode == made["sft"].mode == mode
        assert made["grpo"].train.seed == made["sft"].train.seed
        assert (made["grpo"].train.steps, made["grpo"].train.prompts_per_step) == (
            made["sft"].train.steps,
            made["sft"].train.prompts_per_step,
        )
        assert made["grpo"].run.dir != made["sft"].run.dir


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


def is_running(process: int) -> bool:
    """False for one that has ended and waits for somebody to ask how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_lane_ends_with_a_matrix_that_was_killed() -> None:
    script = (
        "import multiprocessing, os, time; from concurrent.futures import ProcessPoolExecutor; "
        "from benchmarks.matrix_lane import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    print(ProcessPoolExecutor(1, spawn, initializer=end_with_parent).submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as matrix_process:
        assert matrix_process.stdout is not None
        lane = int(matrix_process.stdout.readline())
        assert is_running(lane)
        matrix_process.kill()
    deadline = time.monotonic() + 30.0
    while is_running(lane) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(lane)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("out: x\nconfigs: [a.yaml]\nmethods: {grpo: {command: tain}}\naxes: {no_think: {modality: []}}\n")
    with pytest.raises(ValueError, match=r"methods\.grpo\.command"):
        load_matrix_settings(file)


def test_cells_are_means_by_column_and_drawn_by_image() -> None:
    # Image a has a question in each column, image b one in the first: drawn aa, ab or bb.
    correct = np.array([[1.0, 0.0, 0.0]])
    cells = cell_replicates(correct, np.array([0, 1, 0]), ["a", "a", "b"], replicates=400)
    assert cells.shape == (401, 1, 2)
    assert cells[0, 0].tolist() == [0.5, 0.0]
    assert set(cells[1:, 0, 0].tolist()) == {0.0, 0.5, 1.0}
    assert np.isnan(cells[cells[:, 0, 0] == 0.0, 0, 1]).all(), "an image that was not drawn has no second column"


class FakeInference:
    """Engines that answer A, and remember what they were loaded with and asked; they die at a prompt number."""

    def __init__(self, dies_at: int) -> None:
        self.pool = self
        self.loaded: list[str] = []
        self.asked = 0
        self.dies_at = dies_at

    def load(self, checkpoint: Path) -> None:
        self.loaded.append(str(checkpoint))

    def run(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        self.asked += len(prompts)
        if self.asked > self.dies_at:
            raise RuntimeError("an engine died")
        one, span = np.zeros(1, np.int32), Span("a", "rollout", 0.0, 1.0)
        return [
            Group(
                prompt,
                Completions(
                    prompt.id, "a", one, one.astype(np.float32), one, one + 1, one > 0, ("<answer>A</answer>",), 9, span
                ),
                Rewards(prompt.id, (), np.zeros((1, 0), np.float32), one, one > 0, one > 0, ("A",), span),
            )
            for prompt in prompts
        ]


def test_every_model_is_loaded_once_and_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}}}\ntrain: {{steps: 1}}\nrollout: {{max_tokens: 8}}\n"
        f"data: {{format: phantoms, root: {tmp_path}, phantom_images: 160, image_size: 56}}\n"
    )
    settings = MatrixSettings.model_validate(
        {
            "out": tmp_path / "out",
            "configs": [tmp_path / "run.yaml"],
            "methods": {"grpo": {"command": "train"}},
            "axes": {"no_think": {"question_type": []}},
            "questions_per_column": 4,
        }
    )
    for row in rows(settings):
        folder = run_directory(settings, row) / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "checkpoint-1").symlink_to(tiny_model_path())
        (folder / "latest").write_text("checkpoint-1\n")
    # Two passes of 20 questions for each of six models; the third model is cut off in its first.
    first, second, third = (FakeInference(dies_at) for dies_at in (85, 1000, 1000))
    for inference in (first, second, third):
        monkeypatch.setattr("medr1_ray.evaluation.inference.open_inference", lambda config, i=inference: nullcontext(i))
        if inference is first:
            with pytest.raises(RuntimeError):
                evaluate_all(settings)
        else:
            evaluate_all(settings)
    assert [len(each.loaded) for each in (first, second, third)] == [3, 4, 0]
    assert (second.asked, third.asked) == (4 * 40, 0)
    assert first.loaded[0] == str(tiny_model_path())
    assert len(set(first.loaded + second.loaded)) == 6
    (matrix,) = collect(settings)
    expected = {q.id: q.gold_letter == "A" for q in held_out_questions(settings, "question_type")}
    assert np.mean([cell.accuracy for cell in matrix.cells]) == pytest.approx(np.mean(list(expected.values())))


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MatrixSettings]:
    """An experiment over question types whose models answer as `right(row, question)` says; no blank is right."""
    questions = tuple(
        Question(f"{name}{i}", f"/{name}{i // 2}.png", "What?", ("x", "y"), 0, "CT", name, "d")
        for name in NAMES["question_type"]
        for i in range(20)
    )
    monkeypatch.setattr(matrix_evaluation, "_read", lambda configs: Dataset(questions, questions, ()))

    def answer(right: Callable[[str, Question], bool]) -> MatrixSettings:
        settings = MatrixSettings.model_validate(
            {
                "out": tmp_path,
                "configs": ["unused.yaml"],
                "methods": {"grpo": {"command": "train"}, "sft": {"command": "sft"}},
                "axes": {"no_think": {"question_type": []}},
            }
        )
        trained: list[Trained | None] = [None, *rows(settings)]
        for row in trained:
            folder = evaluation_folder(settings, row, "question_type", "no_think") / "answers"
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("image", "blank_image"):
                lines = [
                    json.dumps({"id": q.id, "correct": name == "image" and right(row.slug if row else "base", q)})
                    for q in held_out_questions(settings, "question_type")
                ]
                (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        return settings

    return answer


def _in_domain(row: str, question: Question) -> bool:
    own = column_of(question, "question_type").lower().replace(" ", "_")
    return own in row or ("grpo" in row and question.id.endswith("1"))


def test_a_matrix_of_answers(experiment: Callable[..., MatrixSettings]) -> None:
    grpo, sft = collect(experiment(_in_domain))
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


def test_tables(experiment: Callable[..., MatrixSettings]) -> None:
    settings = experiment(_in_domain)
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


def test_a_question_that_one_model_could_not_be_put_ends_it(experiment: Callable[..., MatrixSettings]) -> None:
    settings = experiment(_in_domain)
    file = evaluation_folder(settings, None, "question_type", "no_think") / "answers" / "image.jsonl"
    file.write_text(file.read_text().replace('"correct": false', '"left_out": "prompt too long"', 1))
    with pytest.raises(ValueError, match="1 test questions could not be put to question_type-no_think-base"):
        collect(settings)


def test_heat_maps_hold_every_number(experiment: Callable[..., MatrixSettings]) -> None:
    from benchmarks.heat_maps import draw

    settings = experiment(_in_domain)
    grpo, _ = collect(settings)
    draw(grpo, settings.out)
    assert (settings.out / "question_type-no_think-grpo.png").read_bytes().startswith(b"\x89PNG")
    drawing = (settings.out / "question_type-no_think-grpo.svg").read_text()
    # Matplotlib writes each text as a comment beside its outlines.
    assert drawing.count("<!-- 69-100 -->") == 5
    assert drawing.count("<!-- 100° -->") == 5
