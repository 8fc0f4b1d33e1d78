"""Every model of a matrix is loaded once and asked once, with fake engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks.helpers.matrix.evaluation import evaluate_all, held_out_questions
from benchmarks.helpers.matrix.settings import MatrixSettings, rows, run_directory
from benchmarks.helpers.matrix.tables import collect
from medr1_ray.config import tiny_model_path
from medr1_ray.types import Completions, Group, Prompt, Rewards, Sampling, Span


class FakeInference:
    """Fake engines that answer A, record the checkpoints loaded and prompts asked, and die after `dies_at` prompts."""

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
                one.astype(np.float32),
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
    # Two passes of 20 questions for each of six models; the third model is interrupted in its first pass.
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
    known = [json.loads(path.read_text()) for path in (tmp_path / "out" / "evaluations").glob("*/settings.json")]
    assert len({each["images"] for each in known}) == 1, "all were asked about the same images"
    # A model trained again, though under the same name.
    first_row = run_directory(settings, next(rows(settings))) / "checkpoints" / "checkpoint-1"
    first_row.unlink()
    first_row.mkdir()
    (first_row / "model.safetensors").write_text("others")
    with pytest.raises(ValueError, match=r"holds an evaluation with weights '\w+', this one has '\w+'; .*delete that"):
        evaluate_all(settings)
    (matrix,) = collect(settings)
    expected = {q.id: q.gold_letter == "A" for q in held_out_questions(settings, "question_type")}
    assert np.mean([cell.accuracy for cell in matrix.cells]) == pytest.approx(np.mean(list(expected.values())))
