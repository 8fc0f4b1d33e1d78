"""Splitting a step into requests for the learner ranks, and merging their answers. No Ray here.

A group is one row of the model's input, `[prompt | c1 | ... | cG]` (`model/packing.py`), or, where that is longer than
`learner.micro_batch_tokens`, several, each with the prompt and some of the completions. To a rank each row is a group;
normalisers and advantages are of whole groups, and known before the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medr1_ray.config import LearnerSettings
from medr1_ray.learner.messages import (
    BatchSize,
    ImitationRequest,
    LogprobsRequest,
    MicroBatch,
    MiniBatch,
    OptimizerStep,
    RankReport,
    UpdateRequest,
)
from medr1_ray.model.packing import cut_group, row_tokens
from medr1_ray.types import CompletedPrompt, Completions, Group, Span

Homes = Mapping[str, Collection[int]]
"""The ranks that have prepared a prompt's image, by its id."""

NOWHERE: Homes = MappingProxyType({})


@dataclass(frozen=True)
class Row:
    """A row of the model's input: the prompt of a group, with some of its completions or all. Both by their indices,
    the completions in order; `tokens` is the row's length."""

    group: int
    completions: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Plan:
    """The rows of all groups, and the micro-batches of each rank, which index them."""

    rows: tuple[Row, ...]
    ranks: tuple[list[MicroBatch], ...]

    @property
    def padded_tokens(self) -> int:
        """Tokens that go through the model: repeated prompts and padding included."""
        micro_batches = [each.groups for of_rank in self.ranks for each in of_rank]
        return sum(len(rows) * max(self.rows[i].tokens for i in rows) for rows in micro_batches)

    @property
    def answered(self) -> list[list[Row]]:
        """The rows of each rank in the order in which it answers: without padding."""
        return [[self.rows[i] for i in in_order(of_rank)] for of_rank in self.ranks]


def nothing() -> None:
    """The default of a callback that runs while a call is waited for."""


Meanwhile = Callable[[], None]


def plan(pairs: Sequence[CompletedPrompt], settings: LearnerSettings, homes: Homes = NOWHERE) -> Plan:
    """Cut groups that are too large over rows, and deal all rows out to the ranks."""
    rows = []
    for group, (prompt, completions) in enumerate(pairs):
        lengths = completions.lengths.tolist()
        prompt_tokens = row_tokens(prompt, completions) - sum(lengths)
        for chosen in cut_group(lengths, settings.micro_batch_tokens - prompt_tokens):
            rows.append(Row(group, tuple(chosen), prompt_tokens + sum(lengths[i] for i in chosen)))
    # Rows of one group share the set: where one goes, the image is at home for the others.
    known = [set(homes.get(prompt.id, ())) for prompt, _ in pairs]
    ranks = deal_out(
        [row.tokens for row in rows],
        settings.world_size,
        settings.micro_batch_tokens,
        [known[row.group] for row in rows],
    )
    return Plan(tuple(rows), tuple(ranks))


def deal_out(
    lengths: Sequence[int],
    world_size: int,
    micro_batch_tokens: int,
    homes: Sequence[set[int]] | None = None,
) -> list[list[MicroBatch]]:
    """Deal rows out to ranks and cut each rank's share into micro-batches.

    A micro-batch's padded tokens (rows times its longest) are at most `micro_batch_tokens`; a longer row, which is a
    prompt with one completion, goes alone. Ranks get about the same number of tokens: the largest first, each to the
    least loaded of its homes where that stays within the ranks' mean, or else to the least loaded of all. They get the
    same number of micro-batches, since ZeRO's collectives run in lockstep: a rank that has fewer repeats its smallest
    row (one that has none, the batch's smallest) as padding.

    Args:
        lengths: tokens of each row, at least one row.
        homes: the ranks that have each row's image; a row's rank is added, for rows of the same image that share a set.

    Returns the micro-batches of each rank, longest rows first.
    """
    if not lengths:
        raise ValueError("there is no group to plan for; an update needs at least one")
    descending = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    most = sum(lengths) / world_size
    for index in descending:
        home = homes[index] if homes is not None else set()
        near = [rank for rank in sorted(home) if loads[rank] + lengths[index] <= most]
        rank = min(near, key=loads.__getitem__) if near else loads.index(min(loads))
        home.add(rank)
        shares[rank].append(index)
        loads[rank] += lengths[index]
    ranks = [_micro_batches(share, lengths, micro_batch_tokens) for share in shares]
    steps = max(len(micro_batches) for micro_batches in ranks)
    for share, micro_batches in zip(shares, ranks, strict=True):
        # The cheapest padding: this row goes through the model once more, with weight 0.
        smallest = (share or descending)[-1]
        micro_batches += [MicroBatch((smallest,), padding=True)] * (steps - len(micro_batches))
    return ranks


def _micro_batches(share: list[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[MicroBatch]:
    micro_batches: list[MicroBatch] = []
    rows: list[int] = []
    for index in share:
        # The share is sorted by length, so all rows of the micro-batch are padded to that of rows[0].
        if rows and (len(rows) + 1) * lengths[rows[0]] > micro_batch_tokens:
            micro_batches.append(MicroBatch(tuple(rows)))
            rows = []
        rows.append(index)
    return [*micro_batches, MicroBatch(tuple(rows))] if rows else micro_batches


def pairs_of(groups: Sequence[Group]) -> list[CompletedPrompt]:
    return [(group.prompt, group.completions) for group in groups]


def batch_size(pairs: Sequence[CompletedPrompt], max_tokens: int) -> BatchSize:
    """The normalisers of a batch that is one optimizer step."""
    return BatchSize(
        completions=sum(completions.lengths.size for _, completions in pairs),
        tokens=sum(completions.token_ids.size for _, completions in pairs),
        max_tokens=max_tokens,
    )


def mini_batches(groups: Sequence[Group], count: int) -> list[Sequence[Group]]:
    """Cut a batch into `train.minibatches` parts, in order and of equal size; a replayed batch that does not divide, of
    sizes that differ by one at most."""
    if len(groups) < count:
        raise ValueError(f"{len(groups)} groups cannot be cut into train.minibatches={count}; lower it")
    ends = [i * len(groups) // count for i in range(count + 1)]
    return [groups[start:end] for start, end in pairwise(ends)]


def groups_that_teach(groups: Sequence[Group], world_size: int) -> list[Group]:
    """The groups with unequal rewards, and as many others as are needed to give every rank a group."""
    teaching = [group for group in groups if not group.rewards.all_equal]
    others = [group for group in groups if group.rewards.all_equal]
    # Even if no group teaches, the optimizer step is taken (momentum, weight decay), and it needs at least one row.
    return teaching + others[: max(0, world_size - len(teaching))]


def in_order(micro_batches: Sequence[MicroBatch]) -> list[int]:
    """The rows of all micro-batches that are not padding, in the order in which a rank answers."""
    return [i for micro_batch in micro_batches if not micro_batch.padding for i in micro_batch.groups]


def share(of_rank: Sequence[MicroBatch], first: int = 0) -> tuple[list[int], tuple[MicroBatch, ...]]:
    """The rows that a rank needs, each once, and its micro-batches with indices into them, counted from `first`."""
    indices = sorted({i for micro_batch in of_rank for i in micro_batch.groups})
    place = {index: i for i, index in enumerate(indices, start=first)}
    return indices, tuple(
        MicroBatch(tuple(place[i] for i in micro_batch.groups), micro_batch.padding) for micro_batch in of_rank
    )


def group_of(row: Row, group: Group) -> Group:
    """The part of a group that is in the row, as a group."""
    if _is_whole(row, group.completions):
        return group
    chosen, rewards, reference = list(row.completions), group.rewards, group.reference_logprobs
    return replace(
        group,
        completions=completions_of(row, group.completions),
        rewards=replace(
            rewards,
            values=rewards.values[chosen],
            total=rewards.total[chosen],
            correct=rewards.correct[chosen],
            well_formed=rewards.well_formed[chosen],
            answers=tuple(rewards.answers[i] for i in chosen),
        ),
        advantages=group.advantages[chosen],
        reference_logprobs=None if reference is None else reference[_tokens(row, group.completions)],
    )


def completions_of(row: Row, completions: Completions) -> Completions:
    """Those of a group's completions that are in the row."""
    if _is_whole(row, completions):
        return completions
    chosen, tokens = list(row.completions), _tokens(row, completions)
    return replace(
        completions,
        token_ids=completions.token_ids[tokens],
        rollout_logprobs=completions.rollout_logprobs[tokens],
        versions=completions.versions[tokens],
        lengths=completions.lengths[chosen],
        truncated=completions.truncated[chosen],
        texts=tuple(completions.texts[i] for i in chosen),
    )


def _is_whole(row: Row, completions: Completions) -> bool:
    return len(row.completions) == completions.lengths.size


def _tokens(row: Row, completions: Completions) -> NDArray[np.bool_]:
    """Bool [S]: which of the group's tokens are in the row."""
    return np.isin(np.repeat(np.arange(completions.lengths.size), completions.lengths), row.completions)


def joined(
    pairs: Sequence[CompletedPrompt], plan: Plan, answers: Sequence[Sequence[NDArray[np.float32]]]
) -> list[NDArray[np.float32]]:
    """Float32 [S] of each group from each rank's answer, which has an array for each of its rows, in their order."""
    found = [np.empty(completions.token_ids.size, np.float32) for _, completions in pairs]
    for rows, answer in zip(plan.answered, answers, strict=True):
        for row, values in zip(rows, answer, strict=True):
            completions = pairs[row.group][1]
            if _is_whole(row, completions):  # as most are, and this is the driver's time
                found[row.group] = values
            else:
                found[row.group][_tokens(row, completions)] = values
    return found


def update_requests(
    parts: Sequence[Sequence[Group]],
    batches: Sequence[BatchSize],
    settings: LearnerSettings,
    version: int,
    homes: Homes = NOWHERE,
) -> tuple[list[UpdateRequest], int]:
    """The ranks' requests, and the number of tokens that go through the model in one pass, padding included.

    Args:
        parts: of each mini-batch the groups that go through the model.
        batches: of each its normalisers.
    """
    groups: list[list[Group]] = [[] for _ in range(settings.world_size)]
    mini_batches: list[list[MiniBatch]] = [[] for _ in range(settings.world_size)]
    padded_tokens = 0
    for part, batch in zip(parts, batches, strict=True):
        dealt = plan(pairs_of(part), settings, homes)
        padded_tokens += dealt.padded_tokens
        rows = [group_of(row, part[row.group]) for row in dealt.rows]
        for own, of_rank, micro in zip(groups, mini_batches, dealt.ranks, strict=True):
            indices, micro_batches = share(micro, first=len(own))
            own += [rows[i] for i in indices]
            of_rank.append(MiniBatch(micro_batches, batch))
    requests = [
        UpdateRequest(version, tuple(own), tuple(of_rank)) for own, of_rank in zip(groups, mini_batches, strict=True)
    ]
    return requests, padded_tokens


def logprobs_requests(
    pairs: Sequence[CompletedPrompt], plan: Plan, *, plain: bool = False
) -> list[LogprobsRequest]:
    """The ranks' requests for log-probabilities, which `joined` makes of their answers."""
    requests = []
    for of_rank in plan.ranks:
        indices, micro_batches = share(of_rank)
        requests.append(LogprobsRequest(_pairs_of_rows(pairs, plan, indices), micro_batches, plain))
    return requests


def imitation_requests(
    demonstrations: Sequence[CompletedPrompt], plan: Plan, batch: BatchSize, version: int
) -> list[ImitationRequest]:
    requests = []
    for of_rank in plan.ranks:
        indices, micro_batches = share(of_rank)
        own = _pairs_of_rows(demonstrations, plan, indices)
        requests.append(ImitationRequest(version, own, micro_batches, batch))
    return requests


def _pairs_of_rows(
    pairs: Sequence[CompletedPrompt], plan: Plan, indices: Sequence[int]
) -> tuple[CompletedPrompt, ...]:
    rows = [plan.rows[i] for i in indices]
    return tuple((pairs[row.group][0], completions_of(row, pairs[row.group][1])) for row in rows)


def merged_steps(reports: Sequence[RankReport]) -> tuple[OptimizerStep, ...]:
    """One entry per optimizer step: the ranks' shares of the loss are summed; norm and rate are equal on all ranks."""
    return tuple(
        OptimizerStep(
            float(np.sum([step.loss for step in ranks])), ranks[0].grad_norm, ranks[0].learning_rate
        )
        for ranks in zip(*(report.steps for report in reports), strict=True)
    )


def all_spans(reports: Sequence[RankReport]) -> tuple[Span, ...]:
    return tuple(span for report in reports for span in report.spans)
