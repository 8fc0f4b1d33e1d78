"""What a step asks of each learner rank, and one answer out of theirs. No Ray here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medr1_ray.config import LearnerSettings
from medr1_ray.learner.messages import (
    BatchSize,
    ImitationRequest,
    MicroBatch,
    OptimizerStep,
    RankReport,
    UpdateRequest,
)
from medr1_ray.model.packing import row_tokens
from medr1_ray.types import Group, ScoredPrompt, Span

Plan = list[MicroBatch]
"""The micro-batches of one rank."""


def nothing() -> None:
    """What a caller has to do meanwhile, unless it says otherwise."""


Meanwhile = Callable[[], None]


def plan(pairs: Sequence[ScoredPrompt], settings: LearnerSettings) -> tuple[list[Plan], int]:
    """The ranks' micro-batches, and the tokens that they push through the model, padding included."""
    lengths = [row_tokens(prompt, completions) for prompt, completions in pairs]
    plans = deal_out(lengths, settings.world_size, settings.micro_batch_tokens)
    cut = [micro_batch.groups for plan in plans for micro_batch in plan]
    return plans, sum(len(rows) * max(lengths[i] for i in rows) for rows in cut)


def deal_out(lengths: Sequence[int], world_size: int, micro_batch_tokens: int) -> list[list[MicroBatch]]:
    """Deal rows out to ranks and cut each rank's share into micro-batches.

    A micro-batch's padded tokens (rows times its longest) are at most `micro_batch_tokens`; a row that is longer than
    that goes alone, for a group is never cut. Ranks get about the same number of tokens (largest first, each to the
    least loaded) and the same number of micro-batches, since ZeRO's collectives run in lockstep: a rank that has fewer
    repeats its smallest row (one that has none, the batch's smallest) as padding.

    Args:
        lengths: tokens of each row, at least one row.

    Returns the micro-batches of each rank, longest rows first.
    """
    if not lengths:
        raise ValueError("there is no group to plan for; an update needs at least one")
    descending = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in descending:
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    ranks = [_cut(share, lengths, micro_batch_tokens) for share in shares]
    steps = max(len(micro_batches) for micro_batches in ranks)
    for share, micro_batches in zip(shares, ranks, strict=True):
        smallest = (share or descending)[-1]
        micro_batches += [MicroBatch((smallest,), padding=True)] * (steps - len(micro_batches))
    return ranks


def _cut(share: list[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[MicroBatch]:
    micro_batches: list[MicroBatch] = []
    rows: list[int] = []
    for index in share:
        if rows and (len(rows) + 1) * lengths[rows[0]] > micro_batch_tokens:
            micro_batches.append(MicroBatch(tuple(rows)))
            rows = []
        rows.append(index)
    return [*micro_batches, MicroBatch(tuple(rows))] if rows else micro_batches


def batch_size(pairs: Sequence[ScoredPrompt], max_tokens: int) -> BatchSize:
    """The normalisers of a whole batch."""
    return BatchSize(
        completions=sum(completions.lengths.size for _, completions in pairs),
        tokens=sum(completions.token_ids.size for _, completions in pairs),
        max_tokens=max_tokens,
    )


def groups_that_teach(groups: Sequence[Group], equal: Sequence[bool], world_size: int) -> list[Group]:
    """Groups with unequal rewards; others join them only so that every rank has one."""
    teaching = [group for group, is_equal in zip(groups, equal, strict=True) if not is_equal]
    others = [group for group, is_equal in zip(groups, equal, strict=True) if is_equal]
    return teaching + others[: max(0, world_size - len(teaching))]


def in_order(plan: Plan) -> list[int]:
    """The groups of all micro-batches that are no padding: the order in which a rank answers."""
    return [i for micro_batch in plan if not micro_batch.padding for i in micro_batch.groups]


def share(plan: Plan) -> tuple[list[int], tuple[MicroBatch, ...]]:
    """The groups that a rank needs, once each, and its micro-batches in terms of them."""
    indices = sorted({i for micro_batch in plan for i in micro_batch.groups})
    place = {index: i for i, index in enumerate(indices)}
    return indices, tuple(
        MicroBatch(tuple(place[i] for i in micro_batch.groups), micro_batch.padding) for micro_batch in plan
    )


def update_request(groups: Sequence[Group], plan: Plan, batch: BatchSize, version: int) -> UpdateRequest:
    indices, micro_batches = share(plan)
    return UpdateRequest(version, tuple(groups[i] for i in indices), micro_batches, batch)


def imitation_request(
    demonstrations: Sequence[ScoredPrompt], plan: Plan, batch: BatchSize, version: int
) -> ImitationRequest:
    indices, micro_batches = share(plan)
    return ImitationRequest(version, tuple(demonstrations[i] for i in indices), micro_batches, batch)


def merged_steps(reports: Sequence[RankReport]) -> tuple[OptimizerStep, ...]:
    """The ranks' shares of the loss add up; norm and rate are the same on all."""
    return tuple(
        OptimizerStep(
            float(np.sum([step.loss for step in ranks])), ranks[0].grad_norm, ranks[0].learning_rate
        )
        for ranks in zip(*(report.steps for report in reports), strict=True)
    )


def all_spans(reports: Sequence[RankReport]) -> tuple[Span, ...]:
    return tuple(span for report in reports for span in report.spans)
