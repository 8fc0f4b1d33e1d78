"""The learning rate as a function of the step, the only source of it."""

from __future__ import annotations

import math

from medr1_ray.config import LearnerSettings


def learning_rate(settings: LearnerSettings, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (0 is the first) of `steps`.

    Warm-up rises linearly and reaches the full rate with its last step. After it `linear` falls to 0 and `cosine` along
    half a cosine, both over the remaining steps and as in transformers: the first of them has the full rate.
    """
    warmup = settings.warmup_steps
    if warmup < 1:
        warmup = math.ceil(warmup * steps)
    if step < warmup:
        # Unlike transformers, whose warm-up begins at a rate of 0, so that the first step changes nothing.
        return settings.learning_rate * (step + 1) / warmup
    # The limits cover a run that goes on beyond its schedule, and one that is all warm-up.
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    match settings.schedule:
        case "constant":
            return settings.learning_rate
        case "linear":
            return settings.learning_rate * (1 - done)
        case "cosine":
            return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
