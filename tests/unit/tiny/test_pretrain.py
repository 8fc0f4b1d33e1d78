"""The plan of the pre-training: what is taught when, and how fast."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from medr1_ray.data.phantoms import phantom_facts
from medr1_ray.data.prompt_templates import MEDR1_WORDING
from medr1_ray.tiny import curriculum
from medr1_ray.tiny.muon import Muon
from medr1_ray.tiny.pretrain import ADAM_SHARE, Plan, learning_rate, lessons_of_step, optimizers

PLAN = Plan(
    steps=1000,
    learning_rate=0.1,
    warm_up=10,
    decay_fraction=0.2,
    cold_start_steps=20,
    cold_start_rate=0.01,
    cold_start_warm_up=4,
    cold_start_gradings=3,
    cold_start_diagnoses=2,
    cold_start_seed=5,
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.01),  # a tenth of the warm-up
        (4, 0.05),
        (9, 0.1),
        (500, 0.1),
        (800, 0.1),  # the last fifth begins: 200 steps
        (900, 0.05),
        (999, 0.0005),  # one of 200 steps is left
        (1000, 0.01 * 0.25),  # the cold start: a quarter of its warm-up
        (1003, 0.01 * 17 / 20),  # warm, and 17 of 20 steps are left
        (1019, 0.01 / 20),
    ],
)
def test_the_learning_rate_warms_up_stays_and_falls_twice(step: int, rate: float) -> None:
    assert learning_rate(PLAN, step) == pytest.approx(rate)


def test_the_first_stage_is_text_alone_and_the_second_has_everything() -> None:
    first = lessons_of_step(PLAN, seed=0, step=399)
    assert (len(first), {lesson.image for lesson in first}) == (25, {None})
    assert {len(lesson.turns) for lesson in first} == {3}
    second = lessons_of_step(PLAN, seed=0, step=400)
    assert Counter(lesson.image is None for lesson in second) == {False: 8 + 7, True: 10}
    texts = [turn.reply for lesson in first for turn in lesson.turns]
    assert not any("<think>" in reply for reply in texts), "reasoning comes with the second stage"
    assert any("<think>" in turn.reply for lesson in second for turn in lesson.turns)


def test_a_step_is_the_same_whenever_it_is_taken() -> None:
    def texts(seed: int, step: int) -> list[tuple[str, str]]:
        return [(turn.user, turn.reply) for lesson in lessons_of_step(PLAN, seed, step) for turn in lesson.turns]

    assert texts(0, 500) == texts(0, 500)
    assert texts(0, 100) != texts(0, 101)
    assert texts(0, 100) != texts(1, 100)


def test_the_cold_start_asks_each_question_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, str]] = []

    def question_lesson(seed: int, number: int, question_type: str, rng: object) -> curriculum.Lesson:
        asked.append((seed, number, question_type))
        return curriculum.Lesson(None, ())

    monkeypatch.setattr(curriculum, "question_lesson", question_lesson)
    for lesson in ("phantom_lesson", "shape_lesson", "text_lesson"):
        monkeypatch.setattr(curriculum, lesson, lambda *_: curriculum.Lesson(None, ()))
    for step in range(999, 1020):
        count = len(asked)
        lessons = lessons_of_step(PLAN, seed=0, step=step)
        assert (len(lessons), len(asked) - count) == ((25, 0) if step < 1000 else (25 + 5, 5))
    assert len(set(asked)) == len(asked) == 20 * (3 + 2)
    assert {seed for seed, _, _ in asked} == {5}
    diagnoses = [number for _, number, kind in asked if kind == "Disease Diagnosis"]
    assert diagnoses == list(range(40))
    gradings = [number for _, number, kind in asked if kind == "Lesion Grading"]
    with_lesion = [number for number in range(gradings[-1] + 1) if phantom_facts(5, number).lesion]
    assert gradings == with_lesion


def test_matrices_in_the_layers_take_muon_and_all_else_adam(model) -> None:
    muon, adam = optimizers(model, PLAN)
    assert isinstance(muon, Muon)
    assert isinstance(adam, torch.optim.AdamW)
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    of_muon = [names[id(parameter)] for parameter in muon.param_groups[0]["params"]]
    of_adam = [names[id(parameter)] for parameter in adam.param_groups[0]["params"]]
    assert sorted(of_muon + of_adam) == sorted(parameters)
    assert {parameters[name].ndim for name in of_muon} == {2}
    # Norms and biases, the patch kernel of five dimensions, and the embedding, which is a matrix outside the layers.
    assert {name for name in of_adam if parameters[name].ndim == 2} == {"model.language_model.embed_tokens.weight"}
    assert adam.param_groups[0]["lr"] == pytest.approx(ADAM_SHARE * 0.1)


def test_only_the_cold_start_asks_about_phantoms() -> None:
    """The claim of the model card: it can describe a phantom and find an option, and is never taught to join the two.

    A lesson with a phantom's picture has its description and, unrelated to it, a named option.
    """
    describe = set(curriculum.DESCRIBE_PROMPTS)
    instruction = {text.replace("{question}", "") for text in MEDR1_WORDING.templates.values()}
    for step in range(400, 404):
        for lesson in lessons_of_step(PLAN, seed=0, step=step)[:8]:
            assert lesson.image is not None
            first, *others = lesson.turns
            assert first.user in describe
            for turn in others:
                stem = next(turn.user.removesuffix(text) for text in instruction if turn.user.endswith(text))
                name = stem[stem.index("A)") :].partition(f"{letter_of(turn.reply)})")[2].partition(", ")[0]
                assert name.lower() in stem[: stem.index("A)")].lower(), "the stem names the option"


def letter_of(reply: str) -> str:
    return reply.partition("<answer>")[2][0]
