"""The command that evaluates a checkpoint: what it asks for, and what it says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medr1_ray import evaluate as module
from medr1_ray.config import Config, tiny_model_path
from medr1_ray.evaluate import main
from medr1_ray.evaluation.evaluate import Plan
from medr1_ray.evaluation.report import Against


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Plan]]:
    """What was evaluated, without engines."""
    calls: list[tuple[Config, Plan]] = []

    def evaluate(config: Config, plan: Plan) -> Any:
        calls.append((config, plan))
        against = Against("other.json", 39, 0.9, 0.75, 0.15, (0.05, 0.25), 8, 2, 0.109375) if plan.against else None
        return SimpleNamespace(verdict=("it sees the image", "and more"), against=against)

    monkeypatch.setattr(module, "evaluate", evaluate)
    return calls


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "QA_information").mkdir(parents=True)
    return tmp_path / "data"


def test_every_argument_reaches_the_evaluation(
    evaluated: list[tuple[Config, Plan]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "report.json"
    (other.parent / "answers").mkdir(parents=True)
    for file in (other, other.parent / "answers" / "image.jsonl"):
        file.touch()
    (other.parent / "settings.json").write_text('{"questions": "", "images": ""}')
    given = ["--model", "tiny", "--data", str(data), "--split", "test", "--mode", "think", "--samples", "8"]
    given += ["--scoring", "text", "likelihood", "--questions", "40", "--against", str(other)]
    given += ["--out", str(tmp_path / "out"), "rollout.max_tokens=33"]
    assert main(given) == 0
    (config, plan) = evaluated[0]
    assert plan == Plan("test", ("text", "likelihood"), 8, 40, other)
    assert config.model.folder == tiny_model_path()
    assert (config.mode, config.rollout.max_tokens) == ("think", 33)
    assert (config.data.root, config.run.dir) == (data, tmp_path / "out")
    first, second, against, page = capsys.readouterr().out.splitlines()
    assert (first, second, page) == ("it sees the image", "and more", f"{tmp_path / 'out'}/report.md")
    assert against.startswith("Against other.json on 39 questions: 0.900 vs 0.750")


def test_letters_of_all_questions_are_scored_unless_more_is_asked_for(
    evaluated: list[tuple[Config, Plan]], data: Path
) -> None:
    assert main(["--model", "tiny", "--data", str(data), "--split", "train"]) == 0
    assert evaluated[0][1] == Plan("train", ("letter",), 0, None, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--samples", "-1"], "--samples -1 is negative"),
        (["--questions", "-5"], "--questions -5: give 1 or more"),
        (["--questions", "0"], "--questions 0: give 1 or more"),
        (["--model", "/nowhere"], "model.path: '/nowhere' does not exist"),
        (["rollout.max_tokens=0"], "rollout.max_tokens=0"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    evaluated: list[tuple[Config, Plan]],
    data: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    says: str,
) -> None:
    assert main(["--model", "tiny", "--data", str(data), "--split", "test", *changes]) == 1
    assert says in capsys.readouterr().err
    assert evaluated == []
