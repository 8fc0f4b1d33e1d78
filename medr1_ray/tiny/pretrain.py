"""Pre-training loop: general lessons first, then a short cold start on phantom questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from medr1_ray.tiny import curriculum, monitor
from medr1_ray.tiny.curriculum import Lesson
from medr1_ray.tiny.muon import Muon
from medr1_ray.tiny.network import FastForward
from medr1_ray.tiny.packing import Packer

ROW_TOKENS = 192
ROWS = 16
ADAM_SHARE = 0.5  # factor on the learning rate: embeddings that move fast lose the differences between words
LOG_EVERY = 50
MONITOR_EVERY = 250
Log = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """Composition of the steps from `first_step` on.

    `phantoms`, `shapes` and `texts` are numbers of lessons per step. Among the turns without a picture, `reports` and
    `listings` are shares, and `thinking` says whether the modes with reasoning occur.
    """

    first_step: int
    phantoms: int
    shapes: int
    texts: int
    reports: float
    listings: float
    thinking: bool


STAGES = (
    Stage(first_step=0, phantoms=0, shapes=0, texts=25, reports=0.0, listings=0.2, thinking=False),
    Stage(first_step=400, phantoms=8, shapes=7, texts=10, reports=0.3, listings=0.1, thinking=True),
)


@dataclass(frozen=True)
class Plan:
    """Length and learning rate of pre-training.

    There are `steps` optimizer steps; during the last `decay_fraction` of them the learning rate falls to zero. Then
    follow `cold_start_steps` with a rate of their own, each with `cold_start_gradings` and `cold_start_diagnoses`
    questions about phantoms of `cold_start_seed` in addition to the lessons; every question occurs once. Without the
    cold start the model's answers to these questions do not depend on the image, and reinforcement learning, which
    learns from answers that differ, has nothing to start from.
    """

    steps: int = 2600
    learning_rate: float = 3e-3
    warm_up: int = 100
    decay_fraction: float = 0.3
    weight_decay: float = 0.02
    cold_start_steps: int = 150
    cold_start_rate: float = 1.2e-3
    cold_start_warm_up: int = 10
    cold_start_gradings: int = 12
    cold_start_diagnoses: int = 4
    cold_start_seed: int = 900

    @property
    def all_steps(self) -> int:
        """Number of steps including the cold start."""
        return self.steps + self.cold_start_steps


def lessons_of_step(plan: Plan, seed: int, step: int) -> list[Lesson]:
    """Return the lessons of one step; they depend only on the seed and the step, so a run can be resumed.

    The first stage is text only: choosing a named option has to be learned before anything builds on it, and mixed with
    other lessons it took several times as long.
    """
    rng = np.random.default_rng([seed, step])
    stage = STAGES[sum(step >= stage.first_step for stage in STAGES) - 1]
    lessons = [curriculum.phantom_lesson(rng) for _ in range(stage.phantoms)]
    lessons += [curriculum.shape_lesson(rng, 3) for _ in range(stage.shapes)]
    lessons += [
        curriculum.text_lesson(rng, 3, stage.reports, stage.listings, stage.thinking)
        for _ in range(stage.texts)
    ]
    if step < plan.steps:
        return lessons
    rng = np.random.default_rng([seed, step])
    cold = []
    for kind, numbers, each in (
        ("Lesion Grading", curriculum.graded_phantoms(plan.cold_start_seed), plan.cold_start_gradings),
        ("Disease Diagnosis", count(), plan.cold_start_diagnoses),
    ):
        first = (step - plan.steps) * each
        for number in islice(numbers, first, first + each):
            cold.append(curriculum.question_lesson(plan.cold_start_seed, number, kind, rng))
    return cold + lessons


def learning_rate(plan: Plan, step: int) -> float:
    """Return the learning rate of a step: warm-up, constant, linear decay to zero; the cold start repeats the cycle."""
    if step >= plan.steps:
        done = step - plan.steps
        warmth = min(1.0, (done + 1) / plan.cold_start_warm_up)
        return plan.cold_start_rate * warmth * (1 - done / plan.cold_start_steps)
    left = (plan.steps - step) / (plan.decay_fraction * plan.steps)
    return plan.learning_rate * min(1.0, (step + 1) / plan.warm_up, left)


def optimizers(model: Qwen2VLForConditionalGeneration, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices in the layers and AdamW for the rest (embeddings, norms, biases, patch kernel)."""
    matrices: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed_tokens" not in name
        (matrices if inside else rest).append(parameter)
    return [
        Muon(matrices, lr=plan.learning_rate, weight_decay=plan.weight_decay),
        torch.optim.AdamW(rest, lr=plan.learning_rate * ADAM_SHARE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pretrain(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: Plan,
    seed: int,
    log: Log,
    checkpoint: Path,
) -> None:
    """Train `model` in place; `checkpoint` is written at every monitoring step and, if it exists, resumed from."""
    network, packer = FastForward(model), Packer(tokenizer, ROW_TOKENS)
    steppers = optimizers(model, plan)
    examined = monitor.fixed_cases(seed)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(saved)
        first = int(state["step"])
        log(f"resuming from step {first} of {checkpoint}")
    started, total, seen = time.time(), 0.0, 0
    for step in range(first, plan.all_steps):
        rate = learning_rate(plan, step)
        batch = packer.pack(lessons_of_step(plan, seed, step), ROWS)
        losses = functional.cross_entropy(network(batch), batch.targets, reduction="none")
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate * (ADAM_SHARE if isinstance(stepper, torch.optim.AdamW) else 1.0)
            stepper.step()
            stepper.zero_grad()
        total, seen = total + loss.item(), seen + len(batch.pictures)
        if (step + 1) % LOG_EVERY == 0:
            minutes = (time.time() - started) / 60
            log(
                f"step {step + 1} loss {total / LOG_EVERY:.4f} rate {rate:.2e} pictures {seen} minutes {minutes:.1f}"
            )
            total = 0.0
        if (step + 1) % MONITOR_EVERY == 0 or step + 1 in (plan.steps, plan.all_steps):
            log(f"step {step + 1} " + monitor.report(network, packer, examined))
            saved = {
                "model": model.state_dict(),
                "optimizers": [stepper.state_dict() for stepper in steppers],
                "step": step + 1,
            }
            partial = checkpoint.with_suffix(".partial")
            torch.save(saved, partial)
            partial.replace(checkpoint)
