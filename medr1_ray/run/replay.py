"""The recorded groups of a run in place of generated ones: the same rollouts, whatever has changed since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.records.recorded_groups import read_groups, recorded_steps, steps_apart
from medr1_ray.types import Group, Image, pixels_of

_ACTOR = "replay"


class Replay:
    """Groups from `folder`, accounted for in `ledger` as if an actor of this run had generated them. `keep` stores
    their images for the learner's ranks (`Encoder.keep`)."""

    def __init__(self, folder: Path, ledger: Ledger, keep: Callable[[NDArray[np.uint8]], Image]) -> None:
        self._folder = folder
        self._keep = keep
        self._steps_apart = steps_apart(recorded_steps(folder))
        self._ledger = ledger

    def take(self, batch: int) -> list[Group]:
        """The groups of the batch of this number, from 1 on, whatever the optimizer steps were that the recording run
        took on it. Raises ValueError where there are none."""
        groups = [self._stored(group) for group in read_groups(self._folder, batch * self._steps_apart)]
        for group in groups:
            prompt_id = group.prompt.id
            self._ledger.issue(prompt_id)
            self._ledger.assign(prompt_id, _ACTOR)
            self._ledger.generated(prompt_id, _ACTOR, int(group.completions.versions.min()))
            self._ledger.scored(prompt_id)
            self._ledger.use(prompt_id, zero_variance=group.rewards.all_equal)
        return groups

    def _stored(self, group: Group) -> Group:
        return replace(group, prompt=replace(group.prompt, image=self._keep(pixels_of(group.prompt.image))))
