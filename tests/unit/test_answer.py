"""The command that answers questions: one on the terminal, or a file of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from medr1_ray import answer as module
from medr1_ray.answer import main
from medr1_ray.config import Config, tiny_model_path
from medr1_ray.evaluation import inference
from medr1_ray.evaluation.answering import Explained
from medr1_ray.types import Question


class Asked:
    """Stands in for the engines: knows which checkpoint they hold, and answers B unless the stem says not to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[Path] = []
        self.configs: list[Config] = []
        monkeypatch.setattr(inference, "open_inference", self.open)
        monkeypatch.setattr(module, "answer", self.answer)

    @contextmanager
    def open(self, config: Config) -> Iterator[Any]:
        yield SimpleNamespace(load=self.loaded.append, pool=self)

    def answer(
        self, pool: Any, config: Config, questions: Sequence[Question], encoded: Sequence[Any]
    ) -> list[Explained]:
        assert pool is self
        assert self.loaded, "engines answer with the weights of the checkpoint"
        self.configs.append(config)
        return [self._explain(question) for question in questions]

    def _explain(self, question: Question) -> Explained:
        if question.stem == "Silent?":
            return Explained(question, None, "no answer tag", "", "hm", (0.5, 0.5))
        return Explained(question, "B", None, "", "<answer>B</answer>", (0.25, 0.75))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.fixture
def image(tmp_path: Path) -> str:
    return picture(tmp_path / "i.png")


def picture(path: Path) -> str:
    Image.new("RGB", (40, 30)).save(path)
    return str(path)


def test_one_question_is_answered_on_the_terminal(
    asked: Asked, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "tiny", "--image", image, "--question", "Which?", "--options", "CT; MRI", "--mode", "think"]
    assert main([*given, "rollout.max_tokens=33"]) == 0
    out = capsys.readouterr().out
    assert "answer     B  MRI" in out
    assert "0.7500  B  MRI" in out
    assert asked.loaded == [tiny_model_path()]
    assert (asked.configs[0].mode, asked.configs[0].rollout.max_tokens) == ("think", 33)


def test_answers_to_a_file_outlive_a_disk_that_has_filled_up(
    asked: Asked, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "q.csv"
    questions.write_text(f"image,question,options\n{image},Which?,CT;MRI\n")
    given = ["--model", "tiny", "--image", str(tmp_path), "--csv", str(questions), "--out", "/dev/full"]
    assert main(given) == 1
    said = capsys.readouterr().err
    spare = Path(said.rpartition("the answers are in ")[2].removesuffix(" instead\n"))
    assert "error: --out /dev/full: No space left on device; the answers are in" in said
    assert "B,MRI" in spare.read_text()
    spare.unlink()
    spare.parent.rmdir()


def test_a_question_without_an_answer_is_not_an_error(asked: Asked, image: str) -> None:
    assert main(["--model", "tiny", "--image", image, "--question", "Silent?", "--options", "CT; MRI"]) == 0


def test_an_image_that_cannot_be_read_is_an_error_before_an_engine_starts(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name in ("nope.png", "text.png", "."):
        image = str(tmp_path / name)
        assert main(["--model", "tiny", "--image", image, "--question", "Which?", "--options", "CT; MRI"]) == 1
        assert capsys.readouterr().err.startswith(f"error: --image {Path(image)}: ")
    assert asked.loaded == []


def test_a_file_without_a_question_that_can_be_asked_starts_no_engine(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, answers = tmp_path / "q.csv", tmp_path / "a.csv"
    questions.write_text("image,question,options\na.png,Which?,CT; MRI\nb.png,,CT; MRI\n")
    assert main(["--model", "tiny", "--image", str(tmp_path), "--csv", str(questions), "--out", str(answers)]) == 1
    assert asked.loaded == []
    assert "2 rows, 2 without an answer" in capsys.readouterr().out
    assert "a.png" in answers.read_text()


@pytest.mark.parametrize("out", ["no/such/dir/a.csv", "."])
def test_answers_that_could_not_be_written_are_not_computed(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    questions = tmp_path / "q.csv"
    questions.write_text(f"image,question,options\n{Path(picture(tmp_path / 'a.png')).name},Which?,CT; MRI\n")
    given = ["--model", "tiny", "--image", str(tmp_path), "--csv", str(questions), "--out", str(tmp_path / out)]
    assert main(given) == 1
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path / out}")
    assert asked.loaded == []


def test_a_file_of_questions_is_answered_line_by_line(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, answers = tmp_path / "q.csv", tmp_path / "a.csv"
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    questions.write_text(
        "image,question,options\na.png,Which?,CT; MRI\nb.png,,CT; MRI\nc.png,Silent?,CT; MRI\nd.png,What?,CT; MRI\n"
    )
    assert main(["--model", "tiny", "--image", str(tmp_path), "--csv", str(questions), "--out", str(answers)]) == 0
    # Of four lines one has no question and one got no answer.
    assert capsys.readouterr().out == f"{answers}: 4 rows, 2 without an answer\n"
    with answers.open(newline="") as content:
        rows = list(csv.DictReader(content))
    assert [(row["line"], row["answer"], row["problem"]) for row in rows] == [
        ("2", "B", ""),
        ("3", "", "the question is empty"),
        ("4", "", "no answer tag"),
        ("5", "B", ""),
    ]
    assert rows[0]["image"] == str(tmp_path / "a.png"), "the images are in the given folder"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--question", "Which?"], "give --question and --options, or --csv"),
        (["--options", "CT; MRI"], "give --question and --options, or --csv"),
        (["--question", "Which?", "--options", "a; b", "--csv", "q.csv"], "or --csv, but not both"),
        (["--question", "Which?", "--options", "a"], "2 to 26 different ones"),
        (["--csv", "/nowhere.csv"], "--csv /nowhere.csv: cannot be read"),
        (["--question", "Which?", "--options", "a; b", "--model", "/nowhere"], "model.path: '/nowhere' does not exist"),
        (["--question", "Which?", "--options", "a; b", "train.step=3"], "did you mean train.steps?"),
    ],
)
def test_what_cannot_be_answered_is_said_before_an_engine_starts(
    asked: Asked, image: str, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["--model", "tiny", "--image", image, *arguments]) == 1
    assert says in capsys.readouterr().err
    assert asked.loaded == []
