"""Pre-training of the vision tower on its own, before it is trained with the language model, as in Qwen2-VL.

The mean of a picture's visual tokens must point at the embeddings of the words that describe it: the colour, form,
size, number and place of shapes; the modality, anatomy, finding and place of phantoms (in the words of descriptions,
never of options). Only the tower is trained; the embeddings stay fixed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from medr1_ray.data.phantoms import ANATOMIES, GRADES, LOCATIONS, MODALITIES, random_facts
from medr1_ray.tiny import curriculum, shapes
from medr1_ray.tiny.muon import Muon
from medr1_ray.tiny.network import FastForward, patches_of

Log = Callable[[str], None]
LOG_EVERY = 50


@dataclass(frozen=True)
class EyePlan:
    """Length and learning rate of the training.

    Each step has `pictures` pictures, half of them phantoms on average; after `warm_up` steps the learning rate falls
    linearly to zero.
    """

    steps: int = 1000
    pictures: int = 64
    learning_rate: float = 3e-3
    warm_up: int = 50


def fact_groups() -> dict[str, tuple[str, ...]]:
    """Return the words to tell apart, by kind of fact, as they occur in descriptions."""
    said = tuple(name if name in ("CT", "MRI", "X-ray", "OCT") else name.lower() for name in MODALITIES)
    anatomies = sorted({anatomy.lower() for pair in ANATOMIES.values() for anatomy in pair})
    return {
        "colour": tuple(name.lower() for name in shapes.COLOURS),
        "form": tuple(name.lower() for name in shapes.FORMS),
        "size": tuple(name.lower() for name in shapes.SIZES),
        "count": tuple(name.lower() for name in shapes.COUNTS),
        "place": tuple(name.lower() for name in LOCATIONS),
        "modality": said,
        "anatomy": tuple(anatomies),
        "finding": (*(grade.lower() for grade in GRADES), "no"),
    }


def picture_with_words(rng: np.random.Generator) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Return a picture and the word that describes it from each group that applies to it."""
    if rng.integers(2):
        scene = shapes.random_scene(rng)
        words = {"colour": scene.colour, "form": scene.form, "size": scene.size, "count": scene.count}
        if scene.place is not None:
            words["place"] = scene.place
        image = shapes.draw_scene(scene, rng, curriculum.IMAGE_SIZE)
        return image, {group: word.lower() for group, word in words.items()}
    facts = random_facts(rng, MODALITIES[int(rng.integers(len(MODALITIES)))])
    modality = facts.modality if facts.modality in ("CT", "MRI", "X-ray", "OCT") else facts.modality.lower()
    words = {"modality": modality, "anatomy": facts.anatomy.lower(), "finding": (facts.grade or "no").lower()}
    if facts.location is not None:
        words["place"] = facts.location.lower()
    return curriculum.phantom_image(facts, rng), words


def open_eyes(
    network: FastForward, tokenizer: PreTrainedTokenizerFast, plan: EyePlan, seed: int, log: Log
) -> None:
    """Train the vision tower of `network` in place."""
    visual = network.model.model.visual
    embeddings = network.model.get_input_embeddings().weight.detach()
    groups = fact_groups()
    # With a space before it, as in descriptions. A word of several tokens is represented by its first one.
    first_tokens = {
        group: torch.tensor(
            [tokenizer(" " + word, add_special_tokens=False)["input_ids"][0] for word in words]
        )
        for group, words in groups.items()
    }
    matrices = [parameter for parameter in visual.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in visual.parameters() if parameter.ndim != 2]
    steppers = [
        Muon(matrices, lr=plan.learning_rate, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    started, right = time.time(), {group: [0.0, 0.0] for group in groups}
    for step in range(plan.steps):
        rng = np.random.default_rng([seed, 97, step])
        shown = [picture_with_words(rng) for _ in range(plan.pictures)]
        tokens = network.pictures(patches_of(np.stack([image for image, _ in shown])))
        seen = functional.rms_norm(tokens.mean(1), (tokens.shape[-1],))
        loss = seen.new_zeros(())
        for group, words in groups.items():
            rows = [k for k, (_, facts) in enumerate(shown) if group in facts]
            gold = torch.tensor([words.index(shown[k][1][group]) for k in rows])
            logits = seen[rows] @ embeddings[first_tokens[group]].T
            loss = loss + functional.cross_entropy(logits, gold)
            right[group][0] += float((logits.argmax(-1) == gold).sum())
            right[group][1] += len(rows)
        loss.backward()
        rate = plan.learning_rate * min(1.0, (step + 1) / plan.warm_up, 1 - step / plan.steps)
        for stepper in steppers:
            for options in stepper.param_groups:
                options["lr"] = rate
            stepper.step()
            stepper.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            shares = ", ".join(f"{group} {hits / count:.2f}" for group, (hits, count) in right.items())
            log(f"eyes {step + 1} right: {shares}; minutes {(time.time() - started) / 60:.1f}")
            right = {group: [0.0, 0.0] for group in groups}
