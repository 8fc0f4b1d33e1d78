"""The number of rollout actors."""

from __future__ import annotations

import pytest

from medr1_ray.config import RolloutSettings


@pytest.mark.parametrize(
    ("settings", "actor_range", "elastic"),
    [
        ({"actors": 2}, (2, 2), False),
        ({"actors": 2, "min_actors": 1}, (1, 2), True),
        ({"actors": 2, "max_actors": 4}, (2, 4), True),
        ({"actors": 2, "min_actors": 1, "max_actors": 4}, (1, 4), True),
        ({"actors": 2, "min_actors": 2, "max_actors": 2}, (2, 2), False),
    ],
)
def test_it_lies_between_the_fewest_and_the_most(
    settings: dict[str, int], actor_range: tuple[int, int], elastic: bool
) -> None:
    rollout = RolloutSettings.model_validate(settings)
    assert (rollout.actor_range, rollout.is_elastic) == (actor_range, elastic)


@pytest.mark.parametrize(("changes", "fewest", "most"), [({"min_actors": 3}, 3, 2), ({"max_actors": 1}, 2, 1)])
def test_a_start_outside_the_range_is_refused(changes: dict[str, int], fewest: int, most: int) -> None:
    says = rf"actors=2 must lie between rollout\.min_actors={fewest} and rollout\.max_actors={most}"
    with pytest.raises(ValueError, match=says):
        RolloutSettings.model_validate({"actors": 2, **changes})
