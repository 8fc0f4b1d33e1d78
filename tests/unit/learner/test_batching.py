"""What each rank is asked for: groups cut and rows dealt out by hand, and whatever they are, each of them once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medr1_ray.config import LearnerSettings
from medr1_ray.learner.batching import (
    Plan,
    Row,
    all_spans,
    batch_size,
    deal_out,
    group_of,
    groups_that_teach,
    imitation_requests,
    in_order,
    joined,
    logprobs_requests,
    merged_steps,
    mini_batches,
    pairs_of,
    plan,
    share,
    update_requests,
)
from medr1_ray.learner.messages import BatchSize, MicroBatch, MiniBatch, OptimizerStep, RankReport, TokenSums
from medr1_ray.types import Group, Span
from tests.unit.learner.small_groups import PROMPT_TOKENS, group, group_of_lengths


def rows(plans: Sequence[list[MicroBatch]]) -> list[list[tuple[int, ...]]]:
    return [[micro_batch.groups for micro_batch in of_rank] for of_rank in plans]


def padding(plans: list[list[MicroBatch]]) -> list[list[bool]]:
    return [[micro_batch.padding for micro_batch in of_rank] for of_rank in plans]


def test_the_longest_row_goes_to_the_rank_that_has_least() -> None:
    # 9 to rank 0, 7 to rank 1, 5 to rank 1 (7 < 9), 3 to rank 0 (9 < 12). Two rows of 9 are 18 tokens, of 7 are 14.
    plans = deal_out([5, 9, 3, 7], world_size=2, micro_batch_tokens=16)
    assert rows(plans) == [[(1,), (2,)], [(3, 0), (0,)]]
    assert padding(plans) == [[False, False], [False, True]], "rank 1 repeats its smallest row to keep in step"
    assert rows(deal_out([5, 9, 3, 7], world_size=2, micro_batch_tokens=18)) == [[(1, 2)], [(3, 0)]]


def test_a_row_goes_where_it_is_prepared_unless_that_rank_has_its_share() -> None:
    # All 24 tokens are 12 for each rank: 9 and 3 stay at home, 7 goes to the other, 5 would exceed 12 at its home.
    plans = deal_out([5, 9, 3, 7], world_size=2, micro_batch_tokens=18, homes=[{1}, {1}, {1}, set()])
    assert rows(plans) == [[(3, 0)], [(1, 2)]]
    homes = [{0} for _ in range(4)]
    assert rows(deal_out([4, 4, 4, 4], world_size=2, micro_batch_tokens=8, homes=homes)) == [[(0, 1)], [(2, 3)]]
    assert homes == [{0}, {0}, {0, 1}, {0, 1}], "where the image is now"
    both = [{1, 2} for _ in range(4)]
    plans = deal_out([4, 4, 4, 4], world_size=3, micro_batch_tokens=8, homes=both)
    assert rows(plans) == [[(2, 3)], [(0,)], [(1,)]], "of two homes the least loaded; 8 would be more than 16 / 3"


def test_rows_of_one_image_stay_together_unless_that_rank_has_its_share() -> None:
    one, other = set[int](), set[int]()
    # Of 40 tokens 20 are a rank's share: 9 and 7 of one image, 8 and 6 of the other; a 5 would be too much for either.
    plans = deal_out([9, 8, 7, 6, 5, 5], 2, micro_batch_tokens=9, homes=[one, other, one, other, one, other])
    assert rows(plans) == [[(0,), (2,), (5,)], [(1,), (3,), (4,)]]
    assert (one, other) == ({0, 1}, {0, 1})


def test_rows_of_one_length_keep_their_order() -> None:
    assert rows(deal_out([4, 4, 4, 4], world_size=1, micro_batch_tokens=8)) == [[(0, 1), (2, 3)]]


def test_a_row_that_is_longer_than_a_micro_batch_goes_alone() -> None:
    assert rows(deal_out([50, 3, 3], world_size=1, micro_batch_tokens=10)) == [[(0,), (1, 2)]]


def test_a_rank_without_a_row_repeats_the_smallest_of_the_batch() -> None:
    plans = deal_out([6, 4], world_size=3, micro_batch_tokens=10)
    assert rows(plans) == [[(0,)], [(1,)], [(1,)]]
    assert padding(plans) == [[False], [False], [True]]


def test_without_rows_there_is_no_plan() -> None:
    with pytest.raises(ValueError, match="no group to plan for"):
        deal_out([], world_size=1, micro_batch_tokens=10)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_has_its_place_once_and_ranks_keep_in_step(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 40))]
    world_size, limit = rng.randint(1, 5), rng.randint(1, 150)
    homes = [{rank for rank in range(world_size) if rng.random() < 0.3} for _ in lengths] if seed % 2 else None
    plans = deal_out(lengths, world_size, limit, homes)
    assert len(plans) == world_size
    assert len({len(of_rank) for of_rank in plans}) == 1
    assert sorted(i for of_rank in plans for i in in_order(of_rank)) == list(range(len(lengths)))
    for of_rank in plans:
        for each in of_rank:
            assert len(each.groups) == 1 or len(each.groups) * max(lengths[i] for i in each.groups) <= limit
    loads = [sum(lengths[i] for i in in_order(of_rank)) for of_rank in plans]
    assert max(loads) - min(loads) <= max(lengths), "no rank is ahead of another by more than a row"


def test_a_plan_counts_the_tokens_that_go_through_the_model() -> None:
    pairs = [(each.prompt, each.completions) for each in (group("a", 10), group("b", 8), group("c", 7))]
    # Rows of 10 and 8, padded to 10, and one of 7: with one rank 2 * 10 + 7. With two ranks the first has row 0 (10)
    # and the other rows 1 and 2 (2 * 8).
    assert plan(pairs, LearnerSettings(micro_batch_tokens=20)).padded_tokens == 27
    dealt = plan(pairs, LearnerSettings(world_size=2, micro_batch_tokens=20))
    assert (rows(dealt.ranks), dealt.padded_tokens) == ([[(0,)], [(1, 2)]], 26)
    # Without room for two rows the first rank repeats its row: 10, 10, 8 and 7.
    assert plan(pairs, LearnerSettings(world_size=2, micro_batch_tokens=9)).padded_tokens == 35


LONG = group_of_lengths("long", (5, 2, 7, 4), (0.0, 1.0, 2.0, 3.0))
"""A row of 24 tokens."""


def test_a_group_that_is_longer_than_a_micro_batch_is_cut_into_rows_that_repeat_the_prompt() -> None:
    small = group("small", 9)
    dealt = plan(pairs_of([small, LONG]), LearnerSettings(micro_batch_tokens=16))
    # Ten tokens have room beside the prompt's six, so the 18 of the completions take two rows: 7 and 2, 5 and 4.
    assert dealt.rows == (Row(0, (0,), 9), Row(1, (1, 2), 15), Row(1, (0, 3), 15))
    assert rows(dealt.ranks) == [[(1,), (2,), (0,)]]
    assert dealt.padded_tokens == 15 + 15 + 9
    assert plan(pairs_of([LONG]), LearnerSettings(micro_batch_tokens=24)).rows == (Row(0, (0, 1, 2, 3), 24),)
    # A completion of seven does not fit with its prompt: it goes alone, the others as before.
    alone = plan(pairs_of([LONG]), LearnerSettings(micro_batch_tokens=12))
    assert alone.rows == (Row(0, (2,), 13), Row(0, (0,), 11), Row(0, (1, 3), 12))


def test_rows_of_a_group_lie_on_the_ranks_that_have_its_image() -> None:
    # Of 60 tokens 30 are a rank's share: the second row of a group stays with its first (15 + 15).
    settings = LearnerSettings(world_size=2, micro_batch_tokens=16)
    dealt = plan(pairs_of([LONG, replace(LONG, prompt=replace(LONG.prompt, id="other"))]), settings)
    assert [[row.group for row in of_rank] for of_rank in dealt.answered] == [[0, 0], [1, 1]]
    at_home = plan(pairs_of([LONG, *(group(name, 12) for name in "abc")]), settings, {"long": {1}})
    assert [[row.group for row in of_rank] for of_rank in at_home.answered] == [[1, 2, 3], [0, 0]]
    # A single group is shared: more than half of the tokens are no rank's.
    assert [len(of_rank) for of_rank in plan(pairs_of([LONG]), settings).answered] == [1, 1]


def test_a_row_is_a_group_of_some_of_the_completions() -> None:
    whole = replace(LONG, reference_logprobs=-np.arange(18, dtype=np.float32))
    assert group_of(Row(0, (0, 1, 2, 3), 24), whole) is whole
    row = group_of(Row(0, (1, 3), 12), whole)
    tokens = [5, 6, 14, 15, 16, 17]  # after five of the first completion, and after seven more of the third
    completions, rewards = row.completions, row.rewards
    for array in (completions.token_ids, completions.rollout_logprobs, completions.versions, -row.reference_logprobs):
        assert array.tolist() == tokens
    assert completions.lengths.tolist() == [2, 4]
    assert completions.truncated.tolist() == [True, True]
    assert completions.texts == ("text 1", "text 3")
    assert row.advantages.tolist() == rewards.total.tolist() == rewards.values[:, 0].tolist() == [1.0, 3.0]
    assert (rewards.correct.tolist(), rewards.well_formed.tolist()) == ([True, True], [True, True])
    assert rewards.answers == (None, None)
    assert row.prompt is whole.prompt, "the same object, which a request has once"
    assert group_of(Row(0, (1, 3), 12), LONG).reference_logprobs is None


def test_answers_about_rows_are_joined_in_the_order_of_the_completions() -> None:
    pairs = pairs_of([group("small", 9), LONG])
    dealt = plan(pairs, LearnerSettings(world_size=2, micro_batch_tokens=16))
    requests = logprobs_requests(pairs, dealt)
    assert [request.plain for request in requests] == [False, False]
    assert [request.plain for request in logprobs_requests(pairs, dealt, plain=True)] == [True, True]
    answers = [
        [request.groups[i][1].rollout_logprobs for i in in_order(request.micro_batches)] for request in requests
    ]
    found = joined(pairs, dealt, answers)
    assert [each.tolist() for each in found] == [[0, 0, 0], list(range(18))]


@pytest.mark.parametrize("seed", range(20))
def test_every_completion_goes_to_a_rank_once_and_no_micro_batch_is_too_large(seed: int) -> None:
    rng = random.Random(seed)
    groups = []
    for i in range(rng.randint(1, 6)):
        size = rng.randint(1, 12)
        lengths = tuple(rng.randint(1, 40) for _ in range(size))
        groups.append(group_of_lengths(f"g{i}", lengths, tuple(rng.random() for _ in range(size))))
    world_size, limit = rng.randint(1, 4), rng.randint(10, 120)
    homes = {each.prompt.id: {rng.randrange(world_size)} for each in groups[::2]}
    settings = LearnerSettings(world_size=world_size, micro_batch_tokens=limit)
    (requests, tokens) = update_requests([groups], [BatchSize(1, 1, 1)], settings, 3, homes)
    seen, through = [], 0
    steps = [request.mini_batches[0].micro_batches for request in requests]
    assert len({len(micro_batches) for micro_batches in steps}) == 1, "ranks keep in step"
    for request, micro_batches in zip(requests, steps, strict=True):
        for each in micro_batches:
            members = [request.groups[i] for i in each.groups]
            longest = max(PROMPT_TOKENS + member.completions.token_ids.size for member in members)
            assert longest * len(members) <= limit or [member.completions.lengths.size for member in members] == [1]
            through += longest * len(members)
            if not each.padding:
                seen += [(member.prompt.id, text) for member in members for text in member.completions.texts]
    assert sorted(seen) == sorted((each.prompt.id, text) for each in groups for text in each.completions.texts)
    assert through == tokens


PLAN = [MicroBatch((40, 2)), MicroBatch((7,)), MicroBatch((2,), padding=True)]


def test_a_rank_is_sent_the_rows_of_its_plan_once_each() -> None:
    assert in_order(PLAN) == [40, 2, 7]
    indices, micro_batches = share(PLAN)
    assert indices == [2, 7, 40]
    assert micro_batches == (MicroBatch((2, 0)), MicroBatch((1,)), MicroBatch((0,), padding=True))
    assert share(PLAN, first=3)[1] == (MicroBatch((5, 3)), MicroBatch((4,)), MicroBatch((3,), padding=True))
    pairs = pairs_of([group(f"group {i}") for i in range(41)])
    size = BatchSize(1, 2, 3)
    (imitation,) = imitation_requests(pairs, Plan(tuple(Row(i, (0,), 10) for i in range(41)), (PLAN,)), size, 5)
    assert [prompt.id for prompt, _ in imitation.demonstrations] == ["group 2", "group 7", "group 40"]
    assert imitation.micro_batches == micro_batches
    assert (imitation.version, imitation.batch) == (5, size)


def test_mini_batches_are_disjoint_and_in_order() -> None:
    groups: Any = list("abcdefgh")
    assert mini_batches(groups, 1) == [groups]
    assert mini_batches(groups, 4) == [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]]
    assert mini_batches(groups[:7], 3) == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    with pytest.raises(ValueError, match=r"^2 groups cannot be cut into train\.minibatches=3; lower it$"):
        mini_batches(groups[:2], 3)


def test_a_rank_is_sent_the_mini_batches_one_after_the_other() -> None:
    a, b, c, d, e = (group(name, tokens) for name, tokens in zip("abcde", (10, 8, 7, 9, 6), strict=True))
    sizes = [BatchSize(6, 10, 64), BatchSize(4, 5, 64)]
    # Rank 0 has a of the first part (10 against 8 and 7) and d of the second, rank 1 the others, two rows of 8 at once.
    requests, tokens = update_requests(
        [[a, b, c], [d, e]], sizes, LearnerSettings(world_size=2, micro_batch_tokens=16), 5
    )
    assert tokens == (10 + 2 * 8) + (9 + 6)
    assert [request.groups for request in requests] == [(a, d), (b, c, e)]
    assert [request.mini_batches for request in requests] == [
        (MiniBatch((MicroBatch((0,)),), sizes[0]), MiniBatch((MicroBatch((1,)),), sizes[1])),
        (MiniBatch((MicroBatch((0, 1)),), sizes[0]), MiniBatch((MicroBatch((2,)),), sizes[1])),
    ]
    assert {request.version for request in requests} == {5}


def test_ranks_keep_in_step_within_each_mini_batch() -> None:
    parts = [[group("a", 9)], [group("b", 9), group("c", 9), group("d", 9)]]
    requests, tokens = update_requests(
        parts, [BatchSize(1, 1, 1)] * 2, LearnerSettings(world_size=2, micro_batch_tokens=9), 0
    )
    shapes = [[[each.padding for each in part.micro_batches] for part in request.mini_batches] for request in requests]
    assert shapes == [[[False], [False, False]], [[True], [False, True]]]
    assert tokens == 9 * 6


def test_the_size_of_a_batch_is_that_of_all_its_completions() -> None:
    pairs = [(each.prompt, each.completions) for each in (group("a", 10, (1, 0, 0)), group("b", 8, (1, 0)))]
    assert batch_size(pairs, max_tokens=64) == BatchSize(completions=5, tokens=4 + 2, max_tokens=64)


def test_the_shares_of_a_loss_add_up_and_the_norm_is_that_of_all() -> None:
    def report(rank: int, *losses: float) -> RankReport:
        steps = tuple(OptimizerStep(loss, grad_norm=2.0 + i, learning_rate=0.5 + i) for i, loss in enumerate(losses))
        return RankReport(steps, TokenSums(), (Span(f"learner-{rank}", "pack", 0.0, 1.0),))

    reports = [report(0, 0.25, 1.0), report(1, 0.5, 3.0)]
    assert merged_steps(reports) == (OptimizerStep(0.75, 2.0, 0.5), OptimizerStep(4.0, 3.0, 1.5))
    assert [span.actor for span in all_spans(reports)] == ["learner-0", "learner-1"]


def equal_but_for(teaching: str) -> list[Group]:
    return [group(name, 10, (1.0, 0.0) if name in teaching else (1.0, 1.0)) for name in "abcd"]


def test_groups_with_equal_rewards_are_left_out() -> None:
    a, b, c, d = equal_but_for("bd")
    assert groups_that_teach([a, b, c, d], world_size=1) == [b, d]


def test_some_stay_where_a_rank_would_have_no_group() -> None:
    a, b, c, d = equal_but_for("b")
    assert groups_that_teach([a, b, c, d], world_size=3) == [b, a, c]


def test_one_stays_where_all_are_equal() -> None:
    a, b, *_ = equal_but_for("")
    assert groups_that_teach([a, b], world_size=1) == [a]
