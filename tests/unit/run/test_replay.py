"""Recorded groups stand in for generated ones, and are accounted for like them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.records.recorded_groups import write_groups
from medr1_ray.run.replay import Replay
from medr1_ray.types import Group
from tests.unit.records.recorded import a_group


def _group(name: str) -> Group:
    group = a_group()
    return replace(
        group,
        prompt=replace(group.prompt, id=name),
        completions=replace(group.completions, prompt_id=name),
        rewards=replace(group.rewards, prompt_id=name),
    )


def test_each_step_has_its_groups_and_the_ledger_counts_them(tmp_path: Path) -> None:
    for step in (1, 2):
        write_groups(tmp_path, step, [_group(f"{step}.{i}:q") for i in range(3)])
    ledger = Ledger(lambda: 0.0)
    replay = Replay(tmp_path, ledger, lambda pixels: pixels)
    assert [group.prompt.id for group in replay.take(2)] == ["2.0:q", "2.1:q", "2.2:q"]
    assert [group.prompt.id for group in replay.take(1)] == ["1.0:q", "1.1:q", "1.2:q"]
    counts = ledger.counts()
    assert (counts.issued, counts.used, counts.in_flight, counts.zero_variance) == (6, 6, 0, 0)
    with pytest.raises(ValueError, match="no groups of step 3 are recorded there"):
        replay.take(3)


def test_batches_of_several_optimizer_steps_are_counted_as_batches(tmp_path: Path) -> None:
    for step in (4, 8):
        write_groups(tmp_path, step, [_group(f"{step}:q")])
    replay = Replay(tmp_path, Ledger(lambda: 0.0), lambda pixels: pixels)
    assert [replay.take(batch)[0].prompt.id for batch in (1, 2)] == ["4:q", "8:q"]
