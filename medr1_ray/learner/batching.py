"""Splitting a step into requests for the learner ranks, and merging their reports. No Ray here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from medr1_ray.config import LearnerSettings
from medr1_ray.learner.messages import (
    BatchSize,
    ImitationRequest,
    MicroBatch,
    MiniBatch,
    OptimizerStep,
    RankReport,
    UpdateRequest,
)
from medr1_ray.model.packing import row_tokens
from medr1_ray.types import CompletedPrompt, Group, Span

Plan = list[MicroBatch]
"""The micro-batches of one rank."""


def nothing() -> None:
    """The default of a callback that runs while a call is waited for."""


Meanwhile = Callable[[], None]


def plan(
    pairs: Sequence[CompletedPrompt], settings: LearnerSettings, homes: Mapping[str, int] = MappingProxyType({})
) -> tuple[list[Plan], int]:
    """The ranks' micro-batches, and the number of tokens that go through the model, padding included.

    `homes` has the ranks that have prepared a prompt, by its id.
    """
    lengths = [row_tokens(prompt, completions) for prompt, completions in pairs]
    homes_of_rows = [homes.get(prompt.id) for prompt, _ in pairs]
    plans = deal_out(lengths, settings.world_size, settings.micro_batch_tokens, homes_of_rows)
    cut = [micro_batch.groups for plan in plans for micro_batch in plan]
    return plans, sum(len(rows) * max(lengths[i] for i in rows) for rows in cut)


def deal_out(
    lengths: Sequence[int],
    world_size: int,
    micro_batch_tokens: int,
    homes: Sequence[int | None] | None = None,
) -> list[list[MicroBatch]]:
    """Deal rows out to ranks and cut each rank's share into micro-batches.

    A micro-batch's padded tokens (rows times its longest) are at most `micro_batch_tokens`; a longer row goes alone,
    because a group is never cut. Ranks get about the same number of tokens: the largest first, each to its home where
    that stays within the ranks' mean, or else to the least loaded. They get the same number of micro-batches, since
    ZeRO's collectives run in lockstep: a rank that has fewer repeats its smallest row (one that has none, the batch's
    smallest) as padding.

    Args:
        lengths: tokens of each row, at least one row.
        homes: the rank that has a row's image prepared, None where none has.

    Returns the micro-batches of each rank, longest rows first.
    """
    if not lengths:
        raise ValueError("there is no group to plan for; an update needs at least one")
    descending = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    most = sum(lengths) / world_size
    for index in descending:
        home = homes[index] if homes is not None else None
        rank = home if home is not None and loads[home] + lengths[index] <= most else loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    ranks = [_cut(share, lengths, micro_batch_tokens) for share in shares]
    steps = max(len(micro_batches) for micro_batches in ranks)
    for share, micro_batches in zip(shares, ranks, strict=True):
        # The cheapest padding: this row goes through the model once more, with weight 0.
        smallest = (share or descending)[-1]
        micro_batches += [MicroBatch((smallest,), padding=True)] * (steps - len(micro_batches))
    return ranks


def _cut(share: list[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[MicroBatch]:
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


def in_order(plan: Plan) -> list[int]:
    """The groups of all micro-batches that are not padding, in the order in which a rank answers."""
    return [i for micro_batch in plan if not micro_batch.padding for i in micro_batch.groups]


def share(plan: Plan, first: int = 0) -> tuple[list[int], tuple[MicroBatch, ...]]:
    """The groups that a rank needs, each once, and its micro-batches with indices into them, counted from `first`."""
    indices = sorted({i for micro_batch in plan for i in micro_batch.groups})
    place = {index: i for i, index in enumerate(indices, start=first)}
    return indices, tuple(
        MicroBatch(tuple(place[i] for i in micro_batch.groups), micro_batch.padding) for micro_batch in plan
    )


def update_requests(
    parts: Sequence[Sequence[Group]],
    batches: Sequence[BatchSize],
    settings: LearnerSettings,
    version: int,
    homes: Mapping[str, int] = MappingProxyType({}),
) -> tuple[list[UpdateRequest], int]:
    """The ranks' requests, and the number of tokens that go through the model in one pass, padding included.

    Args:
        parts: of each mini-batch the groups that go through the model.
        batches: of each its normalisers.
        homes: the ranks that have prepared a prompt, by its id.
    """
    groups: list[list[Group]] = [[] for _ in range(settings.world_size)]
    cut: list[list[MiniBatch]] = [[] for _ in range(settings.world_size)]
    padded_tokens = 0
    for part, batch in zip(parts, batches, strict=True):
        plans, tokens = plan(pairs_of(part), settings, homes)
        padded_tokens += tokens
        for own, of_rank, micro in zip(groups, cut, plans, strict=True):
            indices, micro_batches = share(micro, first=len(own))
            own += [part[i] for i in indices]
            of_rank.append(MiniBatch(micro_batches, batch))
    requests = [UpdateRequest(version, tuple(own), tuple(of_rank)) for own, of_rank in zip(groups, cut, strict=True)]
    return requests, padded_tokens


def imitation_request(
    demonstrations: Sequence[CompletedPrompt], plan: Plan, batch: BatchSize, version: int
) -> ImitationRequest:
    indices, micro_batches = share(plan)
    return ImitationRequest(version, tuple(demonstrations[i] for i in indices), micro_batches, batch)


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
