"""Groups that are generated together: those of the training, or those of one evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.types import Completions, Group, Prompt, Sampling

_WAITING = 32
_PORTION = 64
_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


@dataclass
class Workload:
    """Prompts in flight with what there is of their groups, by prompt id; `ledger` says at which stage each one is.

    `name` prefixes the request ids: two evaluations of the same prompt must not share one, as an actor may still have
    that of an evaluation that was broken off.
    """

    name: str
    ledger: Ledger
    sampling: Sampling
    prompts: dict[str, Prompt] = field(default_factory=dict)
    completions: dict[str, Completions] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    source: Iterator[Prompt] | None = None
    """Where the prompts of an evaluation come from; it may have more of them than fit into memory."""
    asked: list[str] = field(default_factory=list)
    """Ids of what came from there, in its order."""

    def draw(self, sequences: int) -> bool:
        """Take a portion of prompts from the source, until so many completions are under way, and some that wait for an
        actor that is done; return whether more can be taken."""
        assert self.source is not None
        most = -(-sequences // self.sampling.group_size) + _WAITING
        for _ in range(min(_PORTION, most - len(self.prompts))):
            prompt = next(self.source, None)
            if prompt is None:
                return False
            self.add(prompt)
            self.asked.append(prompt.id)
        return len(self.prompts) < most

    def scored(self, group: Group) -> None:
        """Keep a group that is done; one of an evaluation without its image."""
        prompt = group.prompt
        if self.source is not None:
            prompt = replace(prompt, image=_NO_IMAGE)
            del self.prompts[prompt.id]
            # Whoever looks through the ledger shall not meet what is done.
            self.ledger.use(prompt.id, zero_variance=group.rewards.all_equal)
        self.groups[prompt.id] = replace(group, prompt=prompt)

    def add(self, prompt: Prompt) -> None:
        self.ledger.issue(prompt.id)
        self.prompts[prompt.id] = prompt

    def use(self, prompt_id: str) -> Group:
        """Take a group that is ready out."""
        group = self.groups[prompt_id]
        self.discard(prompt_id)
        self.ledger.use(prompt_id, zero_variance=group.rewards.all_equal)
        return group

    def drop(self, prompt_id: str, reason: str) -> None:
        """End a group unused, for a counted reason."""
        self.ledger.drop(prompt_id, reason)
        self.discard(prompt_id)

    def discard(self, prompt_id: str) -> None:
        """Forget a prompt whose group has left the ledger, with all there is of it."""
        del self.prompts[prompt_id]
        self.completions.pop(prompt_id, None)
        self.groups.pop(prompt_id, None)
