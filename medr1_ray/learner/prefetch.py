"""What is done for groups before the update that takes them: who has been begun, and what came of it.

No Ray here: `start` hands groups to the ranks at once, `finish` waits for their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from medr1_ray.model.packing import row_tokens
from medr1_ray.types import Group

C = TypeVar("C")
ReferenceLogprobs = dict[str, NDArray[np.float32]]
"""Float32 [S] by prompt id."""


class EarlyWork(Generic[C]):
    """Begins groups as soon as they fill a micro-batch on every rank; the rest, where required, when an update asks.

    Args:
        start: begins these groups on all ranks and returns a handle of the call, without waiting.
        finish: waits for such a call, calling what it is given again and again, and returns what the ranks found.
        full_tokens: tokens of the rows that fill a micro-batch on every rank.
        max_staleness: a group is taken or dropped within so many versions; what is known of it is forgotten then.
        required: an update cannot go without what is found; else it helps where it came early, and is left out after.
    """

    def __init__(
        self,
        start: Callable[[Sequence[Group]], C],
        finish: Callable[[C, Callable[[], None]], ReferenceLogprobs],
        full_tokens: int,
        max_staleness: int,
        required: bool,
    ) -> None:
        self._start = start
        self._finish = finish
        self._full_tokens = full_tokens
        self._max_staleness = max_staleness
        self._required = required
        self._version = 0
        self._begun: dict[str, int] = {}  # prompt id to the version at which it was begun
        self._calls: list[C] = []
        self._found: ReferenceLogprobs = {}

    def offer(self, groups: Sequence[Group]) -> None:
        """These groups wait for an update: begin those that are new, if they are enough. Never waits."""
        new = [group for group in groups if group.prompt.id not in self._begun]
        if sum(row_tokens(group.prompt, group.completions) for group in new) >= self._full_tokens:
            self._begin(new)

    def take(self, groups: Sequence[Group], version: int, meanwhile: Callable[[], None]) -> list[Group]:
        """The groups with what was found of them, for the update that begins at policy version `version`.

        `meanwhile` is called again and again.
        """
        self._version = version
        new = [group for group in groups if group.prompt.id not in self._begun]
        if new and self._required:
            self._begin(new)
        for call in self._calls:
            self._found |= self._finish(call, meanwhile)
        self._calls = []
        taken = []
        for group in groups:
            self._begun.pop(group.prompt.id, None)
            taken.append(replace(group, reference_logprobs=self._found.pop(group.prompt.id, None)))
        self._forget_dropped()
        return taken

    def _begin(self, groups: Sequence[Group]) -> None:
        self._calls.append(self._start(groups))
        self._begun |= {group.prompt.id: self._version for group in groups}

    def _forget_dropped(self) -> None:
        for prompt_id, begun in list(self._begun.items()):
            if begun + self._max_staleness < self._version:
                del self._begun[prompt_id]
                self._found.pop(prompt_id, None)
