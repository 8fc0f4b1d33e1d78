"""Groups of a rollout actor that a test asks for itself, in the place of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from medr1_ray.types import Completions, GroupRequest, Prompt, Sampling


def begin(actor: Any, request_id: str, prompt: Prompt, sampling: Sampling) -> Any:
    """Ray's reference to the call that has the group, unless another call comes."""
    return actor.generate.remote([GroupRequest(request_id, prompt, sampling)])


def the_one(call: Any, timeout: float | None = None) -> Completions:
    """The group of a call that takes one."""
    ((_, completions),) = ray.get(call, timeout=timeout)
    found: Completions = completions
    return found


def generate(actor: Any, request_id: str, prompt: Prompt, sampling: Sampling) -> Completions:
    """One group."""
    return the_one(begin(actor, request_id, prompt, sampling))


def generate_all(
    actor: Any, prompts: Sequence[Prompt], sampling: Sampling, timeout: float | None = None
) -> list[Completions]:
    """A group of each prompt, in their order, all at the same time."""
    requests = [GroupRequest(f"all {prompt.id}", prompt, sampling) for prompt in prompts]
    found: dict[str, Completions] = {}
    while len(found) < len(requests):
        found |= dict(ray.get(actor.generate.remote([] if found else requests), timeout=timeout))
    return [found[request.id] for request in requests]
