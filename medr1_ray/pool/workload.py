"""Groups that are generated together: those of the training, or those of one evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.types import Completions, Group, Prompt, Sampling


@dataclass
class Workload:
    """Prompts in flight with what there is of their groups, by prompt id; `ledger` says at which stage each one is.

    `name` prefixes the request ids: rollout actors return the cached answer for a request id they have already seen,
    so two evaluations of the same prompt must not share one.
    """

    name: str
    ledger: Ledger
    sampling: Sampling
    prompts: dict[str, Prompt] = field(default_factory=dict)
    completions: dict[str, Completions] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)

    def add(self, prompt: Prompt) -> None:
        self.ledger.issue(prompt.id)
        self.prompts[prompt.id] = prompt

    def drop(self, prompt_id: str, reason: str) -> None:
        """End a group unused, for a counted reason."""
        self.ledger.drop(prompt_id, reason)
        self.discard(prompt_id)

    def discard(self, prompt_id: str) -> None:
        """Forget a prompt whose group has left the ledger, with all there is of it."""
        del self.prompts[prompt_id]
        self.completions.pop(prompt_id, None)
        self.groups.pop(prompt_id, None)
