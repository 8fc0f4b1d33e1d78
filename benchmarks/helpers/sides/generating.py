"""Groups of one rollout actor, without a pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from medr1_ray.types import Completions, GroupRequest, Prompt, Sampling


def generate_all(actor: Any, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completions]:
    """Return a group of each prompt, in their order, all generated at the same time."""
    requests = [GroupRequest(prompt.id, prompt, sampling) for prompt in prompts]
    found: dict[str, Completions] = dict(ray.get(actor.generate.remote(requests)))
    while len(found) < len(requests):
        found |= dict(ray.get(actor.generate.remote([])))
    return [found[request.id] for request in requests]
