"""Work on groups before the update that takes them: which ones have been started, and their results.

No Ray here: `start` hands groups to the ranks without waiting, `finish` waits for their answers.
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


class Prefetch(Generic[C]):
    """Starts groups as soon as they fill a micro-batch on every rank; the rest, where required, when an update asks.

    Args:
        start: starts these groups on all ranks and returns a handle of the call, without waiting.
        finish: waits for such a call, repeatedly calling the function it is given, and returns the ranks' results.
        full_tokens: tokens of the rows that fill a micro-batch on every rank.
        max_staleness: a group is taken or dropped within this many versions; its result is forgotten afterwards.
        required: an update needs the results (a KL is taken); otherwise early work only saves time.
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
        self._begun: dict[str, int] = {}  # prompt id to the version at which its work was started
        self._calls: list[C] = []
        self._found: ReferenceLogprobs = {}

    @property
    def begun(self) -> set[str]:
        """Ids of the groups that were started and that no update has taken."""
        return set(self._begun)

    def begin(self, groups: Sequence[Group]) -> None:
        """Start those of the waiting groups that are new, if they fill a micro-batch on every rank. Never waits."""
        new = [group for group in groups if group.prompt.id not in self._begun]
        # Smaller portions would start earlier, but take more passes and, with several ranks, padding.
        if sum(row_tokens(group.prompt, group.completions) for group in new) >= self._full_tokens:
            self._start_new(new)

    def take(self, groups: Sequence[Group], version: int, meanwhile: Callable[[], None]) -> list[Group]:
        """The groups with their results, for the update that begins at policy version `version`.

        `meanwhile` is called repeatedly while this waits.
        """
        self._version = version
        new = [group for group in groups if group.prompt.id not in self._begun]
        # Without a KL only patches are prepared, and the update makes missing ones itself.
        if new and self._required:
            self._start_new(new)
        # This includes calls for groups of later updates: a rank runs its calls in order, so the update waits for them
        # anyway.
        for call in self._calls:
            self._found |= self._finish(call, meanwhile)
        self._calls = []
        taken = []
        for group in groups:
            self._begun.pop(group.prompt.id, None)
            taken.append(replace(group, reference_logprobs=self._found.pop(group.prompt.id, None)))
        self._forget_dropped()
        return taken

    def _start_new(self, groups: Sequence[Group]) -> None:
        self._calls.append(self._start(groups))
        self._begun |= {group.prompt.id: self._version for group in groups}

    def _forget_dropped(self) -> None:
        for prompt_id, begun in list(self._begun.items()):
            # Too old for any later update: the pool has dropped the group, and its results would never be collected.
            if begun + self._max_staleness < self._version:
                del self._begun[prompt_id]
                self._found.pop(prompt_id, None)
