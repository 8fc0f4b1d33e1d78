"""Who ends engines, by elimination; and who generates what meanwhile."""

from __future__ import annotations

import random

import pytest

from medr1_ray.pool.suspects import Suspects, assignments


def test_only_the_second_death_that_one_group_alone_explains_proves_it() -> None:
    suspects = Suspects()
    assert suspects.lost_with(["a", "b", "c"], "first") == []
    assert set(suspects) == {"a", "b", "c"}
    suspects.generated("b")
    assert "b" not in suspects
    assert suspects.lost_with(["a"], "second") == []
    assert suspects.lost_with(["a", "c"], "of both") == [], "either may have done it"
    assert suspects.lost_with(["c"], "once") == []
    suspects.generated("c")
    assert suspects.lost_with(["a"], "third") == ["second", "third"]
    assert set(suspects) == set()
    assert suspects.proven_in_a_row == 1
    suspects.generated("d")
    assert suspects.proven_in_a_row == 0


def test_a_group_that_was_answered_in_between_starts_anew() -> None:
    suspects = Suspects()
    suspects.lost_with(["a"], "first")
    suspects.generated("a")
    assert suspects.lost_with(["a"], "second") == []


WAITING = dict.fromkeys("abcdef", 4)


def test_the_least_loaded_actor_takes_the_next_group_up_to_what_an_engine_samples_at_once() -> None:
    assert assignments(WAITING, {"x": 0, "y": 4}, 8) == {"a": "x", "b": "x", "c": "y"}
    assert assignments({"large": 20, "small": 4}, {"x": 0}, 8) == {"large": "x"}, "an idle actor takes any group"
    assert assignments(WAITING, {}, 8) == {}


def test_a_suspect_is_alone_on_its_actor() -> None:
    load = {"x": 0, "y": 0}
    assert assignments(WAITING, load, 8, suspects=["c"]) == {"c": "x", "a": "y", "b": "y"}
    assert assignments(WAITING, load, 8, suspects=["b", "c", "d"]) == {"b": "x", "c": "y"}
    assert assignments(WAITING, {"x": 4, "y": 0}, 8, suspects=["f"], closed={"x", None}) == {"f": "y"}


def test_an_actor_becomes_idle_for_a_suspect_that_waits() -> None:
    assert assignments(WAITING, {"x": 4, "y": 8}, 12, suspects=["c"]) == {"a": "y"}


@pytest.mark.parametrize("seed", range(5))
def test_an_innocent_group_is_never_named_where_engines_die_of_the_guilty_alone(seed: int) -> None:
    rng = random.Random(seed)
    groups = [f"g{i}" for i in range(40)]
    guilty = set(rng.sample(groups, 3))
    suspects, waiting, proven, deaths = Suspects(), list(groups), set[str](), 0
    while waiting:
        actors = {f"r{i}": 0 for i in range(4)}
        at = assignments(dict.fromkeys(waiting, 1), actors, 8, suspects)
        assert at, "no round without work"
        for actor in actors:
            has = [group for group, name in at.items() if name == actor]
            if guilty & set(has):
                deaths += 1
                if suspects.lost_with(has, actor):
                    proven.update(has)
                    waiting.remove(has[0])
            else:
                for group in has:
                    suspects.generated(group)
                    waiting.remove(group)
    assert proven == guilty
    assert deaths <= 3 * len(guilty)
