"""The recorded groups of a run in place of generated ones: the same rollouts, whatever has changed since."""

from __future__ import annotations

from pathlib import Path

from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.records.recorded_groups import read_groups, recorded_steps, steps_apart
from medr1_ray.types import Group

_ACTOR = "replay"


class Replay:
    """Groups from `folder`, accounted for in `ledger` as if an actor of this run had generated them."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder = folder
        self._steps_apart = steps_apart(recorded_steps(folder))
        self._ledger = ledger

    def take(self, batch: int) -> list[Group]:
        """The groups of the batch of this number, from 1 on, whatever the optimizer steps were that the recording run
        took on it. Raises ValueError where there are none."""
        groups = read_groups(self._folder, batch * self._steps_apart)
        for group in groups:
            prompt_id = group.prompt.id
            self._ledger.issue(prompt_id)
            self._ledger.assign(prompt_id, _ACTOR)
            self._ledger.generated(prompt_id, _ACTOR, int(group.completions.versions.min()))
            self._ledger.scored(prompt_id)
            self._ledger.use(prompt_id, zero_variance=group.rewards.all_equal)
        return groups
