"""Lessons of the tiny model: everyday pictures, descriptions of phantoms, and choosing a named option.

Questions about phantom images are not among them, except for the gradings and diagnoses of the short cold start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1_ray.data.phantoms import (
    ANATOMIES,
    GRADES,
    LOCATIONS,
    MODALITIES,
    PhantomFacts,
    PhantomQuestion,
    ask,
    describe,
    draw,
    phantom_facts,
    phantom_questions,
    phantom_rng,
    random_facts,
)
from medr1_ray.data.prompt_templates import MEDR1_WORDING
from medr1_ray.tiny import shapes
from medr1_ray.types import LETTERS, Mode

IMAGE_SIZE = 84
MODES: tuple[Mode, ...] = ("no_think", "think", "think_after")
MODE_SHARES = (0.6, 0.2, 0.2)
DRAWN_SIZES = (84, 96, 112, 128)
_IMAGE_PURPOSE = 2

DESCRIBE_PROMPTS = (
    "Describe the image.",
    "Describe this picture.",
    "What can you see?",
    "Write a caption.",
    "Give a short description.",
)
# In quotes a name is the same token as in an option; without quotes it follows a space and is a different token.
_QUOTED_STEMS = (
    'Which option says "{}"?',
    'Which option is "{}"?',
    'Choose "{}".',
    'Find "{}".',
    'The answer is "{}".',
)
_NAMED_STEMS = ("Which option is {}?", "Choose {}.", "Find {}.", "The answer is {}.")
_ANATOMY_NAMES = tuple(sorted({anatomy for pair in ANATOMIES.values() for anatomy in pair}))
_EVERYDAY = (  # noqa: SIM905  (fifty quoted words would take fifty lines)
    "Cat Dog Horse Cow Sheep Bird Fish Apple Pear Plum Lemon Bread Milk Rice Car Bus Train Ship Bike Plane House "
    "Tree River Hill Road Lake Chair Table Lamp Book Cup Spoon Hat Shoe Coat Ring Spring Summer Autumn Winter Rain "
    "Snow Wind Sun Moon Star Gold Iron Wood Glass Paper Stone"
).split()
POOLS: tuple[tuple[str, ...], ...] = (
    MODALITIES,
    _ANATOMY_NAMES,
    GRADES,
    LOCATIONS,
    ("Yes", "No"),
    tuple(shapes.COLOURS),
    shapes.FORMS,
    shapes.SIZES,
    shapes.COUNTS,
    tuple(_EVERYDAY),
)


@dataclass(frozen=True)
class Turn:
    """The user's text (after the image, if there is one) and the assistant's reply."""

    user: str
    reply: str


@dataclass(frozen=True)
class Lesson:
    """Turns that share one picture, uint8 [84, 84, 3], or none."""

    image: NDArray[np.uint8] | None
    turns: tuple[Turn, ...]


def choose_turn(item: shapes.Item, mode: Mode) -> Turn:
    """Return a multiple-choice question in Med-R1's wording, with the reply in the form that `mode` asks for."""
    offered = ", ".join(f"{LETTERS[i]}){option}" for i, option in enumerate(item.options))
    answer = f"<answer>{LETTERS[item.answer]}</answer>"
    thought = f"<think>{item.because}</think>"
    reply = {"no_think": answer, "think": thought + answer, "think_after": answer + thought}[mode]
    return Turn(MEDR1_WORDING.templates[mode].replace("{question}", f"{item.stem} {offered}"), reply)


def random_mode(rng: np.random.Generator) -> Mode:
    """Return a mode drawn with the probabilities `MODE_SHARES`."""
    return MODES[int(rng.choice(3, p=MODE_SHARES))]


def named_item(rng: np.random.Generator) -> shapes.Item:
    """Return a question whose stem names the option to choose, either in quotes or as in a sentence."""
    names = _name_pool(rng)
    count = min(len(names), int(rng.integers(2, 5)))
    options = tuple(names[k] for k in rng.choice(len(names), count, replace=False))
    answer = int(rng.integers(count))
    target = options[answer]
    if rng.random() < 0.6:
        stem = _QUOTED_STEMS[int(rng.integers(len(_QUOTED_STEMS)))].format(target)
    else:
        stem = _NAMED_STEMS[int(rng.integers(len(_NAMED_STEMS)))].format(_as_in_a_sentence(target))
    return shapes.Item(stem, options, answer, f'Option {LETTERS[answer]} says "{target}".')


def listing_turn(rng: np.random.Generator) -> Turn:
    """Return a turn that lists all options in another order: many matches of name and letter in few tokens."""
    pool = _name_pool(rng)
    count = min(len(pool), int(rng.integers(3, 7)))
    names = [pool[k] for k in rng.choice(len(pool), count, replace=False)]
    offered = ", ".join(f"{LETTERS[i]}){name}" for i, name in enumerate(names))
    order = [int(k) for k in rng.permutation(count)]
    if rng.random() < 0.3:
        return Turn(
            f"Which name has which letter? {offered}", ",".join(f"{LETTERS[k]}={names[k]}" for k in order)
        )
    return Turn(
        f"Which letter has which name? {offered}", ",".join(f"{names[k]}={LETTERS[k]}" for k in order)
    )


def report_items(rng: np.random.Generator) -> list[shapes.Item]:
    """Return questions about a written report, without a picture."""
    if rng.random() < 0.6:
        facts = random_facts(rng, MODALITIES[int(rng.integers(len(MODALITIES)))])
        text = describe(facts, rng)
        asked = [phantom_item(question) for question in ask(facts, rng)]
    else:
        scene = shapes.random_scene(rng)
        text = shapes.describe_scene(scene)
        asked = shapes.scene_items(scene, rng)
    return [
        shapes.Item(f"Report: {text} {item.stem}", item.options, item.answer, item.because) for item in asked
    ]


def phantom_item(question: PhantomQuestion) -> shapes.Item:
    """Return a phantom question as an item whose reason only names the answer."""
    answer = question.options.index(question.answer)
    return shapes.Item(
        question.stem, question.options, answer, f"It is {_as_in_a_sentence(question.answer)}."
    )


def text_lesson(
    rng: np.random.Generator, turns: int, reports: float, listings: float, thinking: bool
) -> Lesson:
    """Return a lesson without a picture: reports and lists of options in the given shares, otherwise named options."""
    chosen: list[Turn] = []
    while len(chosen) < turns:
        kind = rng.random()
        if kind < reports:
            asked = report_items(rng)
            chosen.append(
                choose_turn(
                    asked[int(rng.integers(len(asked)))], random_mode(rng) if thinking else "no_think"
                )
            )
        elif kind < reports + listings:
            chosen.append(listing_turn(rng))
        else:
            chosen.append(choose_turn(named_item(rng), random_mode(rng) if thinking else "no_think"))
    return Lesson(None, tuple(chosen))


def shape_lesson(rng: np.random.Generator, turns: int) -> Lesson:
    """Return a picture of shapes with some of its questions and, with probability 1/2, its description."""
    scene = shapes.random_scene(rng)
    asked = shapes.scene_items(scene, rng)
    chosen = [choose_turn(asked[k], random_mode(rng)) for k in rng.permutation(len(asked))[:turns]]
    if rng.random() < 0.5:
        chosen.append(Turn(_describe_prompt(rng), shapes.describe_scene(scene)))
    return Lesson(shapes.draw_scene(scene, rng, IMAGE_SIZE), tuple(chosen))


def phantom_lesson(rng: np.random.Generator) -> Lesson:
    """Return a phantom with its description and, with probability 1/3, a named option, unrelated to the picture."""
    facts = random_facts(rng, MODALITIES[int(rng.integers(len(MODALITIES)))])
    turns = [Turn(_describe_prompt(rng), describe(facts, rng))]
    if rng.random() < 1 / 3:
        turns.append(choose_turn(named_item(rng), random_mode(rng)))
    return Lesson(phantom_image(facts, rng), tuple(turns))


def phantom_image(facts: PhantomFacts, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a phantom drawn at one of several sizes and squashed to the model's 84 x 84 pixels."""
    drawn = draw(facts, rng, DRAWN_SIZES[int(rng.integers(len(DRAWN_SIZES)))])
    return squash(drawn)


def squash(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `image` resized to 84 x 84 pixels whatever its aspect ratio, as Med-R1 squashes to 384 x 384."""
    return np.asarray(Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class PhantomCase:
    """One phantom of a seed with all its questions."""

    facts: PhantomFacts
    image: NDArray[np.uint8]
    questions: tuple[PhantomQuestion, ...]


def phantom_case(seed: int, index: int, size: int = 112) -> PhantomCase:
    """Return phantom `index` of the dataset that `write_dataset(seed=seed)` writes."""
    facts = phantom_facts(seed, index)
    image = squash(draw(facts, phantom_rng(seed, index, _IMAGE_PURPOSE), size))
    return PhantomCase(facts, image, tuple(phantom_questions(seed, index)))


def graded_phantoms(seed: int) -> Iterator[int]:
    """Return an endless iterator over the indices of a seed's phantoms that have a lesion, and so a grade."""
    return (number for number in count() if phantom_facts(seed, number).lesion)


def question_lesson(seed: int, number: int, question_type: str, rng: np.random.Generator) -> Lesson:
    """Return the question of one type about one phantom, as a lesson."""
    case = phantom_case(seed, number)
    (question,) = [question for question in case.questions if question.question_type == question_type]
    return Lesson(case.image, (choose_turn(phantom_item(question), random_mode(rng)),))


def corpus(seed: int, lessons: int = 3000) -> list[str]:
    """Return texts to train the tokenizer on: the texts of the lessons and the wordings of phantom questions."""
    rng = np.random.default_rng([seed, 99])
    texts: list[str] = []
    for _ in range(lessons):
        for item in (named_item(rng), *report_items(rng), *shapes.scene_items(shapes.random_scene(rng), rng)):
            offered = ", ".join(f"{LETTERS[i]}){option}" for i, option in enumerate(item.options))
            texts += [f"{item.stem} {offered}", item.because]
        facts = random_facts(rng, MODALITIES[int(rng.integers(len(MODALITIES)))])
        listing = listing_turn(rng)
        texts += [_describe_prompt(rng), describe(facts, rng), listing.user, listing.reply]
    return texts


def _name_pool(rng: np.random.Generator) -> list[str]:
    """Return the names of one pool, or of two pools together."""
    pools = [POOLS[int(k)] for k in rng.choice(len(POOLS), 1 if rng.random() < 0.6 else 2, replace=False)]
    return sorted({name for pool in pools for name in pool})


def _describe_prompt(rng: np.random.Generator) -> str:
    return DESCRIBE_PROMPTS[int(rng.integers(len(DESCRIBE_PROMPTS)))]


def _as_in_a_sentence(name: str) -> str:
    return name if name in ("CT", "MRI", "X-ray", "OCT") else name.lower()
