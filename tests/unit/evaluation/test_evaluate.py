"""Evaluating a checkpoint from end to end, with fake engines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from medr1_ray.config import Config, DataSettings, tiny_model_path
from medr1_ray.data.dataset import Dataset
from medr1_ray.evaluation import evaluate as module
from medr1_ray.evaluation.evaluate import Plan, evaluate
from medr1_ray.evaluation.passes import Row
from medr1_ray.types import Group, Prompt, Question, Sampling
from tests.unit.evaluation.engines import Engines


class Inference:
    """Stands in for `open_inference`: engines that answer A, the checkpoints they were given, and their settings."""

    def __init__(self) -> None:
        self.pool = Counting()
        self.loaded: list[Path] = []
        self.opened_for: list[Config] = []

    def load(self, checkpoint: Path) -> None:
        self.loaded.append(checkpoint)

    @contextmanager
    def open(self, config: Config) -> Iterator[Inference]:
        self.opened_for.append(config)
        yield self


class Counting(Engines):
    """Answers A to every prompt, and B to half of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.samplings: list[Sampling] = []

    def run(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        self.texts = ("<answer>A</answer>", "<answer>B</answer>")[: sampling.group_size]
        self.samplings.append(sampling)
        return super().run(prompts, sampling)


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch) -> Inference:
    made = Inference()
    monkeypatch.setattr("medr1_ray.evaluation.inference.open_inference", made.open)
    return made


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings for four held-out questions, A right for two of them, and eight for training."""

    def question(name: str, i: int) -> Question:
        file = tmp_path / f"{name}{i}.png"
        Image.new("RGB", (56, 56), (40 * i, 0, 0)).save(file)
        return Question(f"{name}{i}", str(file), "Which?", ("CT", "MRI"), i % 2, "CT", "Modality Recognition", "d")

    held_out = tuple(question("held", i) for i in range(4))
    train = tuple(question("train", i) for i in range(8))
    def opened(settings: DataSettings, train_needed: bool) -> Dataset:
        return Dataset(train, held_out[: settings.eval_questions], ())

    monkeypatch.setattr(module, "open_dataset", opened)
    return Config.model_validate(
        {
            "run": {"dir": tmp_path / "result"},
            "data": {"format": "phantoms", "root": tmp_path, "image_size": 56},
            "train": {"steps": 1},
            "rollout": {"max_tokens": 8},
        }
    )


def in_folder(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": folder})})


def repaint(image: Path) -> None:
    Image.new("RGB", (56, 56), (1, 2, 3)).save(image)


def forget_images(folder: Path) -> None:
    """Make of an evaluation one of before the images were part of what identifies it."""
    settings = json.loads((folder / "settings.json").read_text())
    del settings["images"]
    (folder / "settings.json").write_text(json.dumps(settings))


def rows_of(folder: Path, name: str) -> list[Row]:
    return [json.loads(line) for line in (folder / "answers" / f"{name}.jsonl").read_text().splitlines()]


def test_every_pass_is_asked_and_reported(config: Config, inference: Inference) -> None:
    report = evaluate(config, Plan("test", ("letter", "text", "likelihood"), samples=2))
    folder = config.run.dir
    assert inference.loaded == [tiny_model_path()]
    names = ["blank_image", "image", "likelihood", "samples_2", "shuffled_image", "shuffled_options", "text"]
    assert sorted(path.stem for path in (folder / "answers").glob("*.jsonl")) == names
    assert all(len(rows_of(folder, name)) == 4 for name in names)
    # A is right for held0 and held2; each gets one right of two samples, and so do the others from B.
    assert (report.overall.n, report.overall.accuracy) == (4, 0.5)
    assert (report.samples, report.pass_rate) == (2, 0.5)
    assert report.scorings.keys() == {"text", "likelihood"}
    assert report.model == "tiny"
    assert json.loads((folder / "report.json").read_text())["overall"]["accuracy"] == 0.5
    assert (folder / "report.md").read_text().startswith("# tiny, no_think, test")
    rates = [json.loads(line) for line in (folder / "pass_rates.jsonl").read_text().splitlines()]
    assert [(row["id"], row["pass_rate"]) for row in rows_of(folder, "samples_2")] == [
        (row["id"], row["pass_rate"]) for row in rates
    ]


def test_answers_in_text_get_room_and_letters_keep_the_limit_of_the_training(
    config: Config, inference: Inference
) -> None:
    evaluate(config, Plan("test", ("letter", "text"), samples=2))
    assert inference.opened_for[0].rollout.max_tokens == 64
    asked = inference.pool.samplings
    assert [(each.group_size, each.max_tokens, each.temperature) for each in asked] == [
        *[(1, 8, 0.0)] * 4,
        (1, 64, 0.0),
        (2, 8, 1.0),
    ]


def test_a_complete_evaluation_starts_no_engine(config: Config, inference: Inference) -> None:
    first = evaluate(config, Plan("test"))
    (config.run.dir / "report.md").unlink()
    assert evaluate(config, Plan("test")) == first
    assert (config.run.dir / "report.md").exists()
    assert len(inference.opened_for) == 1
    evaluate(config, Plan("test", samples=2))
    assert len(inference.opened_for) == 2, "samples are still to be drawn"
    assert len(rows_of(config.run.dir, "image")) == 4, "and nothing else is asked again"


def test_the_training_part_can_be_asked_and_the_number_limited(config: Config, inference: Inference) -> None:
    report = evaluate(config, Plan("train", questions=6))
    assert report.overall.n == 6
    assert all(row["id"].startswith("train") for row in rows_of(config.run.dir, "image"))


def test_one_question_can_be_evaluated(config: Config, inference: Inference) -> None:
    report = evaluate(config, Plan("test", questions=1))
    assert report.overall.n == 1
    assert "shuffled_image" not in report.overall.baselines
    assert any(sentence.startswith("The shuffled image is left out: images cannot be") for sentence in report.verdict)
    assert (config.run.dir / "report.md").exists()


def test_other_questions_do_not_go_into_the_same_folder(config: Config, inference: Inference) -> None:
    evaluate(config, Plan("test"))
    with pytest.raises(ValueError, match="holds an evaluation with questions"):
        evaluate(config, Plan("test", questions=2))


def test_answers_about_other_images_do_not_go_into_the_same_folder(
    config: Config, inference: Inference, tmp_path: Path
) -> None:
    """As after `prepare` with another window into the same folder: the same rows, and other pictures."""
    evaluate(config, Plan("test"))
    repaint(tmp_path / "held1.png")
    with pytest.raises(ValueError, match=r"holds an evaluation with images '\w+', this one has '\w+'; give another"):
        evaluate(config, Plan("test"))
    forget_images(config.run.dir)
    with pytest.raises(ValueError, match=r"of an earlier version, whose settings\.json does not say its images; give"):
        evaluate(config, Plan("test"))


def test_two_results_are_compared(config: Config, inference: Inference, tmp_path: Path) -> None:
    evaluate(config, Plan("test"))
    earlier = config.run.dir / "report.json"
    against = evaluate(in_folder(config, tmp_path / "later"), Plan("test", against=earlier)).against
    assert against is not None
    assert (against.other, against.n, against.only_this, against.only_other) == (str(earlier), 4, 0, 0)
    with pytest.raises(ValueError, match=r"--against .* is an evaluation with questions '.*'; give a result of the"):
        evaluate(in_folder(config, tmp_path / "fewer"), Plan("test", questions=2, against=earlier))
    repaint(tmp_path / "held1.png")
    with pytest.raises(ValueError, match=r"--against .* is an evaluation with images '.*'; give a result of the same"):
        evaluate(in_folder(config, tmp_path / "repainted"), Plan("test", against=earlier))
    forget_images(config.run.dir)
    with pytest.raises(ValueError, match="has no 'images'; --against needs a result of this version"):
        evaluate(in_folder(config, tmp_path / "old"), Plan("test", against=earlier))


def test_the_order_of_questions_does_not_matter_to_a_comparison(
    config: Config, inference: Inference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed of a run's data orders them."""
    evaluate(config, Plan("test"))
    dataset = module.open_dataset(config.data, train_needed=False)
    backwards = Dataset(dataset.train, dataset.evaluation[::-1], ())
    monkeypatch.setattr(module, "open_dataset", lambda settings, train_needed: backwards)
    against = evaluate(in_folder(config, tmp_path / "later"), Plan("test", against=config.run.dir)).against
    assert against is not None
    assert against.n == 4


def test_what_is_no_evaluation_is_refused_before_an_engine_starts(
    config: Config, inference: Inference, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is not an evaluation"):
        evaluate(config, Plan("test", against=tmp_path))
    assert inference.opened_for == []


def test_another_wording_is_asked_and_goes_into_another_folder(config: Config, inference: Inference) -> None:
    evaluate(config, Plan("test"))
    own = config.prompt.model_copy(update={"no_think": "Q: {question} Letter?", "think": "{question} Think."})
    worded = config.model_copy(update={"prompt": own})
    with pytest.raises(ValueError, match=r"holds an evaluation with system text and template None, .*Letter\?"):
        evaluate(worded, Plan("test"))
    elsewhere = config.run.model_copy(update={"dir": config.run.dir / "worded"})
    evaluate(worded.model_copy(update={"run": elsewhere}), Plan("test"))
    # The wording of a mode that is not evaluated changes nothing.
    think_alone = config.prompt.model_copy(update={"think": "{question} Think."})
    evaluate(config.model_copy(update={"prompt": think_alone}), Plan("test"))
