"""The driver's handle on the learner: W actors in one placement group, and an update as one call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medr1_ray import grpo, packing
from medr1_ray.config import Config
from medr1_ray.early_work import EarlyWork, ReferenceLogprobs
from medr1_ray.flops import forward_flops, peak_flops
from medr1_ray.learner_actor import LearnerActor
from medr1_ray.packing import ScoredPrompt
from medr1_ray.sizing import read_shape
from medr1_ray.types import (
    BatchSize,
    Group,
    GroupScore,
    MicroBatch,
    OptimizerStep,
    RankReport,
    UpdateReport,
    UpdateRequest,
    WeightUpdate,
)


class Learner:
    """The DeepSpeed ranks as one object. The constructor asks for the actors, `start` waits for them.

    Consumes scored groups, produces reports and weight updates; waits for all ranks in every call, each with a
    deadline. Methods raise RuntimeError when a rank dies or is late, naming it and what it was doing, and pass on a
    rank's own ValueError.

    Args:
        name: the ranks are the actors `<name>-0`, `<name>-1`, ...
    """

    def __init__(self, config: Config, name: str = "learner") -> None:
        self._config = config
        self._name = name
        settings = config.learner
        self._placement = placement_group(
            [{"CPU": settings.cpus_per_rank, "GPU": settings.gpus_per_rank}] * settings.world_size,
            strategy="PACK",
            name=name,
        )
        self._ranks: list[Any] = [self._create(rank) for rank in range(settings.world_size)]
        self._early = EarlyWork(
            self._start_preparing,
            self._finish_preparing,
            settings.world_size * settings.micro_batch_tokens,
            config.train.max_staleness,
            required=config.loss.kl_beta > 0,
        )
        self._shape = read_shape(config.model.folder)
        self._peak_flops: float | None = None

    def start(self) -> None:
        """Wait until every rank is placed and has loaded the model."""
        cluster, settings = self._config.cluster, self._config.learner
        if not self._placement.wait(cluster.placement_timeout_seconds):
            raise RuntimeError(
                f"no place for the learner after cluster.placement_timeout_seconds="
                f"{cluster.placement_timeout_seconds:g}: it needs {settings.world_size} x "
                f"{settings.cpus_per_rank:g} CPUs and {settings.gpus_per_rank:g} GPUs; the cluster has "
                f"{ray.available_resources()} free. Lower learner.world_size, learner.cpus_per_rank or "
                "learner.gpus_per_rank, or add nodes"
            )
        deadline = cluster.start_timeout_seconds
        (address,) = self._wait([self._ranks[0].rendezvous_address.remote()], "finding an address", deadline)
        device, *_ = self._call("start", [(address,)] * len(self._ranks), "starting", deadline)
        peak = settings.peak_flops or peak_flops(device)
        self._peak_flops = peak and peak * settings.world_size

    def offer(self, groups: Sequence[Group]) -> None:
        """Groups that the next update will probably take: the ranks begin on patches and the reference's
        log-probabilities while others are generated. Returns at once."""
        self._early.offer(groups)

    def update(self, groups: Sequence[Group], version: int) -> UpdateReport:
        """Take `train.updates_per_rollout` optimizer steps on these groups, from policy version `version`.

        Groups whose rewards are all equal do not go through the model where that changes nothing (no KL): they count in
        the loss's normalisers all the same, so that the gradient is the whole batch's.
        """
        config, world_size = self._config, self._config.learner.world_size
        batch = BatchSize(
            completions=sum(group.completions.lengths.size for group in groups),
            tokens=sum(group.completions.token_ids.size for group in groups),
            max_tokens=config.rollout.max_tokens,
        )
        equal = [bool(group.rewards.total.max() == group.rewards.total.min()) for group in groups]
        kept = groups_that_teach(groups, equal, world_size) if config.loss.kl_beta == 0 else list(groups)
        kept = self._early.take(kept, version)
        lengths = [packing.row_tokens(group.prompt, group.completions) for group in kept]
        plans = packing.plan(lengths, world_size, config.learner.micro_batch_tokens)
        requests = [(_request(kept, plan, batch, version),) for plan in plans]
        reports = self._call(
            "update",
            requests,
            f"updating from policy version {version}",
            config.cluster.update_timeout_seconds,
        )
        return UpdateReport(
            version=version + config.train.updates_per_rollout,
            steps=_merge_steps(reports),
            statistics=grpo.statistics(report.sums for report in reports),
            groups=len(groups),
            groups_zero_variance=sum(equal),
            groups_skipped=len(groups) - len(kept),
            tokens=batch.tokens,
            padded_tokens=sum(
                len(micro_batch.groups) * max(lengths[i] for i in micro_batch.groups)
                for plan in plans
                for micro_batch in plan
            ),
            model_flops=forward_flops(
                self._shape, [(group.prompt, group.completions) for group in kept]
            ).update(config.train.updates_per_rollout, config.model.train_vision_tower, config.loss.kl_beta > 0),
            peak_flops=self._peak_flops,
            spans=tuple(span for report in reports for span in report.spans),
        )

    def score(self, groups: Sequence[ScoredPrompt], *, plain: bool = False) -> list[GroupScore]:
        """The policy's log-probabilities of completions, one score per group and in their order.

        `plain` gives each completion a row of its own, without the shared prompt: slower, and the same but for
        rounding, so that a difference shows which of the two is wrong.
        """
        lengths = [packing.row_tokens(prompt, completions) for prompt, completions in groups]
        plans = packing.plan(
            lengths, self._config.learner.world_size, self._config.learner.micro_batch_tokens
        )
        requests = []
        for plan in plans:
            indices, micro_batches = _share(plan)
            requests.append((tuple(groups[i] for i in indices), micro_batches, plain))
        answers = self._call("score", requests, "scoring", self._config.cluster.update_timeout_seconds)
        scores: dict[int, GroupScore] = {}
        for plan, answer in zip(plans, answers, strict=True):
            scores.update(zip(_in_order(plan), answer, strict=True))
        return [scores[i] for i in range(len(groups))]

    def export_weights(self, version: int) -> WeightUpdate:
        """All parameters as policy version `version`, in Ray's object store."""
        arguments = [(version,)] * len(self._ranks)
        what = f"publishing policy version {version}"
        update: WeightUpdate = self._call(
            "export_weights", arguments, what, self._config.cluster.sync_timeout_seconds
        )[0]
        return update

    def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder` (on a file system that all ranks share): Hugging Face files on top,
        `learner_state/` for `load`."""
        self._call(
            "save",
            [(folder.resolve(),)] * len(self._ranks),
            f"saving to {folder}",
            self._config.cluster.update_timeout_seconds,
        )

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint that `save` wrote."""
        self._call(
            "load",
            [(folder.resolve(),)] * len(self._ranks),
            f"loading {folder}",
            self._config.cluster.start_timeout_seconds,
        )

    def close(self) -> None:
        """End the actors and give back their place; safe to call twice."""
        for actor in self._ranks:
            ray.kill(actor)
        self._ranks = []
        remove_placement_group(self._placement)

    def _create(self, rank: int) -> Any:
        settings = self._config.learner
        # Threads that wait must sleep: spinning, on cores that engines keep busy, they hold up those they wait for.
        environment = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "passive"}
        if settings.gpus_per_rank == 0:
            environment["DS_ACCELERATOR"] = "cpu"
        options = {
            "name": f"{self._name}-{rank}",
            "num_cpus": settings.cpus_per_rank,
            "num_gpus": settings.gpus_per_rank,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._placement, placement_group_bundle_index=rank
            ),
            "runtime_env": {"env_vars": environment},
        }
        return ray.remote(LearnerActor).options(**options).remote(self._config, rank, f"{self._name}-{rank}")

    def _start_preparing(self, groups: Sequence[Group]) -> _Preparation:
        lengths = [packing.row_tokens(group.prompt, group.completions) for group in groups]
        settings = self._config.learner
        plans = packing.plan(lengths, settings.world_size, settings.micro_batch_tokens)
        answers = []
        for actor, plan in zip(self._ranks, plans, strict=True):
            indices, micro_batches = _share(plan)
            pairs = tuple((groups[i].prompt, groups[i].completions) for i in indices)
            answers.append(actor.prepare.remote(pairs, micro_batches))
        order = [[groups[i].prompt.id for i in _in_order(plan)] for plan in plans]
        return _Preparation(answers, order)

    def _finish_preparing(self, preparation: _Preparation) -> ReferenceLogprobs:
        deadline = self._config.cluster.update_timeout_seconds
        found: ReferenceLogprobs = {}
        for ids, logprobs in zip(
            preparation.order, self._wait(preparation.answers, "preparing groups", deadline), strict=True
        ):
            found |= dict(zip(ids, logprobs, strict=False))  # without a KL there are none
        return found

    def _call(
        self, method: str, arguments: Sequence[tuple[Any, ...]], what: str, deadline_seconds: float
    ) -> list[Any]:
        references = [
            getattr(actor, method).remote(*given) for actor, given in zip(self._ranks, arguments, strict=True)
        ]
        return self._wait(references, what, deadline_seconds)

    def _wait(self, references: list[Any], what: str, deadline_seconds: float) -> list[Any]:
        """The answers of rank 0, 1, ...; the first failure of any rank, whichever is still waiting for whom."""
        end = time.monotonic() + deadline_seconds
        waiting = list(references)
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
            if not ready:
                late = ", ".join(f"{self._name}-{references.index(reference)}" for reference in waiting)
                raise RuntimeError(
                    f"{late}: still {what} after {deadline_seconds:g} s; the deadline is in `cluster`"
                )
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ValueError):
                    raise error.cause from None
                raise RuntimeError(
                    f"{self._name}-{references.index(ready[0])} failed while {what}: {error}"
                ) from error
            except ray.exceptions.RayActorError as error:
                raise RuntimeError(
                    f"{self._name}-{references.index(ready[0])} died while {what}: {error}"
                ) from error
        answers: list[Any] = ray.get(references)
        return answers


def groups_that_teach(groups: Sequence[Group], equal: Sequence[bool], world_size: int) -> list[Group]:
    """Groups with unequal rewards; others join them only so that every rank has one."""
    teaching = [group for group, is_equal in zip(groups, equal, strict=True) if not is_equal]
    others = [group for group, is_equal in zip(groups, equal, strict=True) if is_equal]
    return teaching + others[: max(0, world_size - len(teaching))]


@dataclass(frozen=True)
class _Preparation:
    """The ranks' answers to come, and the prompt ids in the order of each rank's answer."""

    answers: list[Any]
    order: list[list[str]]


def _in_order(plan: Sequence[MicroBatch]) -> list[int]:
    """The groups of all micro-batches that are no padding: the order in which a rank answers."""
    return [i for micro_batch in plan if not micro_batch.padding for i in micro_batch.groups]


def _share(plan: Sequence[MicroBatch]) -> tuple[list[int], tuple[MicroBatch, ...]]:
    """The groups that a rank needs, once each, and its micro-batches in terms of them."""
    indices = sorted({i for micro_batch in plan for i in micro_batch.groups})
    place = {index: i for i, index in enumerate(indices)}
    return indices, tuple(
        MicroBatch(tuple(place[i] for i in micro_batch.groups), micro_batch.padding) for micro_batch in plan
    )


def _request(
    groups: Sequence[Group], plan: Sequence[MicroBatch], batch: BatchSize, version: int
) -> UpdateRequest:
    indices, micro_batches = _share(plan)
    return UpdateRequest(version, tuple(groups[i] for i in indices), micro_batches, batch)


def _merge_steps(reports: Sequence[RankReport]) -> tuple[OptimizerStep, ...]:
    """The ranks' shares of the loss add up; norm and rate are the same on all."""
    return tuple(
        OptimizerStep(
            float(np.sum([step.loss for step in ranks])), ranks[0].grad_norm, ranks[0].learning_rate
        )
        for ranks in zip(*(report.steps for report in reports), strict=True)
    )
