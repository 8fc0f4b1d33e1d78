"""Quick measures during training: how often the correct letter or the correct fact word is the most likely one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medr1_ray.data.phantoms import (
    ANATOMIES,
    GRADES,
    LOCATIONS,
    MODALITIES,
    QUESTION_TYPES,
    describe,
    random_facts,
)
from medr1_ray.tiny import curriculum, shapes
from medr1_ray.tiny.curriculum import Lesson, Turn
from medr1_ray.tiny.network import FastForward
from medr1_ray.tiny.packing import Packer

CASES = 120
PART = 48
PROBE_SEED = 901


@dataclass(frozen=True)
class Exam:
    """A lesson of one turn whose reply is an answer tag or a description; `name` is its entry in the report."""

    name: str
    lesson: Lesson


def fixed_cases(seed: int) -> list[Exam]:
    """Return lessons of every kind that training never sees."""
    rng = np.random.default_rng([seed, 98, 1])
    exams: list[Exam] = []
    for _ in range(CASES):
        exams.append(_choice("named", None, curriculum.named_item(rng)))
        asked = curriculum.report_items(rng)
        exams.append(_choice("report", None, asked[int(rng.integers(len(asked)))]))
        scene = shapes.random_scene(rng)
        picture = shapes.draw_scene(scene, rng, curriculum.IMAGE_SIZE)
        names = ("colour", "form", "size", "count", "presence", "place")
        for name, item in zip(names, shapes.scene_items(scene, rng), strict=False):
            exams.append(_choice("shape/" + name, picture, item))
    for index in range(2 * CASES):
        case = curriculum.phantom_case(PROBE_SEED, index)
        for question in case.questions:
            exams.append(
                _choice("phantom/" + question.question_type, case.image, curriculum.phantom_item(question))
            )
        facts = random_facts(rng, MODALITIES[index % 8])
        turn = Turn(curriculum.DESCRIBE_PROMPTS[0], describe(facts, rng))
        exams.append(Exam("describe", Lesson(curriculum.phantom_image(facts, rng), (turn,))))
    return exams


def _choice(name: str, image: NDArray[np.uint8] | None, item: shapes.Item) -> Exam:
    return Exam(name, Lesson(image, (curriculum.choose_turn(item, "no_think"),)))


@torch.no_grad()
def report(network: FastForward, packer: Packer, exams: list[Exam]) -> str:
    """Return one line of measures.

    They are the share of correct letters by kind, the mean probability of the correct letter on phantoms, and the share
    of correct fact words in descriptions (given the preceding words).
    """
    right: dict[str, list[float]] = defaultdict(list)
    chance: dict[str, list[float]] = defaultdict(list)
    vocabulary = packer.tokenizer.get_vocab()
    letters = [vocabulary[letter] for letter in "ABCD"]
    fact_words = _fact_words(packer)
    members = torch.tensor(sorted(fact_words))
    for at in range(0, len(exams), PART):
        part = exams[at : at + PART]
        batch = packer.pack([exam.lesson for exam in part], PART // 2)
        logits = network(batch)
        for index, exam in enumerate(part):
            mine = batch.lesson_of == index
            rows, targets = logits[mine], batch.targets[mine].tolist()
            if exam.name == "describe":
                for row, target in zip(rows, targets, strict=True):
                    if target in fact_words:
                        guess = members[row[members].argmax()].item()
                        right["describe/" + fact_words[target]].append(float(guess == target))
                continue
            row, gold = rows[1, letters], letters.index(targets[1])  # token 0 of the reply is <answer>
            right[exam.name].append(float(int(row.argmax()) == gold))
            if exam.name.startswith("phantom/"):
                chance[exam.name].append(float(row.softmax(-1)[gold]))
    overall = [value for name in right if name.startswith("phantom/") for value in right[name]]
    spread = [value for values in chance.values() for value in values]
    parts = [f"{name} {np.mean(values):.2f}" for name, values in sorted(right.items())]
    order = [f"{np.mean(chance['phantom/' + kind]):.2f}" for kind in QUESTION_TYPES]
    return (
        f"phantom all {np.mean(overall):.3f} sampled {np.mean(spread):.3f} | {', '.join(parts)}"
        f" | sampled by type {' '.join(order)}"
    )


def _fact_words(packer: Packer) -> dict[int, str]:
    """Return the kind of fact by the id of the first token of its words in descriptions."""
    words: dict[int, str] = {}

    def add(text: str, fact: str) -> None:
        words[packer.tokenizer(text, add_special_tokens=False)["input_ids"][0]] = fact

    for modality, anatomies in ANATOMIES.items():
        said = modality if modality in ("CT", "MRI", "X-ray", "OCT") else modality.lower()
        add(said, "modality")
        add(" " + said, "modality")
        for anatomy in anatomies:
            add(" " + anatomy.lower(), "anatomy")
    for grade in (*GRADES, "no"):
        add(" " + grade.lower(), "finding")
    for place in LOCATIONS:
        add(" " + place.lower(), "place")
    return words
