"""Which groups are begun before an update, and what becomes of what was found."""

import numpy as np
import pytest

from medr1_ray.learner.prefetch import Prefetch
from tests.unit.learner.small_groups import group


def _nothing():
    pass


class Ranks:
    """Stands in for the learner's ranks: the logprobs of a group are as many as the calls before it."""

    def __init__(self):
        self.begun, self.finished = [], 0

    def start(self, groups):
        self.begun.append([group.prompt.id for group in groups])
        return len(self.begun) - 1

    def finish(self, call, meanwhile):
        meanwhile()
        self.finished += 1
        return {name: np.full(1, call, np.float32) for name in self.begun[call]}


@pytest.fixture
def ranks():
    return Ranks()


def early_work(ranks, required=True, max_staleness=0):
    return Prefetch(ranks.start, ranks.finish, 25, max_staleness, required)


def test_groups_are_begun_once_when_they_fill_a_micro_batch(ranks):
    early = early_work(ranks)
    a, b, c, d = map(group, "abcd")
    early.begin([a, b])  # 20 tokens of 25
    assert ranks.begun == []
    early.begin([a, b, c])
    early.begin([a, b, c, d])  # d alone is not enough
    assert ranks.begun == [["a", "b", "c"]]
    assert ranks.finished == 0  # offering never waits
    taken = early.take([d, a, b, c], version=0, meanwhile=_nothing)
    assert ranks.begun == [["a", "b", "c"], ["d"]]
    assert [(group.prompt.id, group.reference_logprobs[0]) for group in taken] == [
        ("d", 1),
        ("a", 0),
        ("b", 0),
        ("c", 0),
    ]


def test_what_was_begun_for_a_later_update_is_kept_for_it(ranks):
    early = early_work(ranks, max_staleness=1)
    a, b = group("a", 30), group("b", 30)
    early.begin([a, b])
    early.take([a], version=0, meanwhile=_nothing)
    (taken,) = early.take([b], version=1, meanwhile=_nothing)
    assert ranks.begun == [["a", "b"]]
    assert taken.reference_logprobs is not None


def test_what_was_begun_of_a_dropped_group_is_forgotten(ranks):
    early = early_work(ranks, max_staleness=1)
    early.begin([group("dropped", 30)])  # at version 0: taken or dropped by version 1
    early.take([group("a", 30)], version=2, meanwhile=_nothing)
    early.take([group("dropped", 30)], version=3, meanwhile=_nothing)
    assert ranks.begun == [["dropped"], ["a"], ["dropped"]]


def test_without_a_reference_nothing_is_begun_late(ranks):
    early = early_work(ranks, required=False)
    a = group("a")
    (taken,) = early.take([a], version=0, meanwhile=_nothing)
    assert ranks.begun == []
    assert taken.reference_logprobs is None
