"""The driver's handle on the learner: W actors in one placement group, and an update as one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from medr1_ray import grpo, packing
from medr1_ray.config import Config
from medr1_ray.demand import demands
from medr1_ray.learner_actor import LearnerActor
from medr1_ray.packing import ScoredPrompt
from medr1_ray.placement import Place, SharedPlace, ask_for_place, wait_for_place
from medr1_ray.types import (
    BatchSize,
    Group,
    GroupScore,
    ImitationReport,
    ImitationRequest,
    MicroBatch,
    OptimizerStep,
    RankReport,
    UpdateReport,
    UpdateRequest,
    WeightGroup,
    WeightUpdate,
)
from medr1_ray.weight_ipc import merged

_MEANWHILE_SECONDS = 0.2


def _nothing() -> None:
    """What a caller has to do meanwhile, unless it says otherwise."""


@dataclass(frozen=True)
class Call:
    """A call of all ranks that is under way."""

    references: list[Any]
    what: str


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
        own = demands(config)[0]
        if config.cluster.colocated:
            own = replace(own, cpus=own.cpus + config.rollout.cpus_per_actor, gpus=1.0)
        self._place = ask_for_place(name, own, "PACK")
        self._ranks: list[Any] = [self._create(rank) for rank in range(settings.world_size)]

    def start(self, say: Callable[[str], None] = print, meanwhile: Callable[[], None] = _nothing) -> None:
        """Wait until every rank is placed and has loaded the model.

        `say` takes what is missing, `meanwhile` is called again and again.
        """
        wait_for_place(self._place, self._config.cluster.placement_timeout_seconds, say, meanwhile)
        deadline = self._config.cluster.start_timeout_seconds
        (address,) = self._wait([self._ranks[0].rendezvous_address.remote()], "finding an address", deadline, meanwhile)
        self._call("start", [(address,)] * len(self._ranks), "starting", deadline, meanwhile)

    def places_beside(self) -> Callable[[str], Place]:
        """Places for engines on the ranks' GPUs, one beside each rank, when they are colocated."""
        free = list(range(self._config.learner.world_size))
        demand = demands(self._config)[1]
        return lambda name: SharedPlace(name, demand, self._place.group, free.pop(0), free)

    def update(
        self, groups: Sequence[Group], version: int, meanwhile: Callable[[], None] = _nothing
    ) -> UpdateReport:
        """Take `train.updates_per_rollout` optimizer steps on these groups, from policy version `version`.

        `meanwhile` is called again and again until the ranks are done.
        Groups whose rewards are all equal do not go through the model where that changes nothing (no KL): they count in
        the loss's normalisers all the same, so that the gradient is the whole batch's.
        """
        config = self._config
        batch = BatchSize(
            completions=sum(group.completions.lengths.size for group in groups),
            tokens=sum(group.completions.token_ids.size for group in groups),
            max_tokens=config.rollout.max_tokens,
        )
        equal = [group.rewards.all_equal for group in groups]
        kept = list(groups) if config.takes_kl else groups_that_teach(groups, equal, config.learner.world_size)
        plans, padded_tokens = self._plan([(group.prompt, group.completions) for group in kept])
        requests = [(_request(kept, plan, batch, version),) for plan in plans]
        reports = self._call(
            "update",
            requests,
            f"updating from policy version {version}",
            config.cluster.update_timeout_seconds,
            meanwhile,
        )
        return UpdateReport(
            version=version + config.train.updates_per_rollout,
            steps=_merge_steps(reports),
            statistics=grpo.statistics(report.sums for report in reports),
            groups=len(groups),
            groups_zero_variance=sum(equal),
            groups_skipped=len(groups) - len(kept),
            tokens=batch.tokens,
            padded_tokens=padded_tokens,
            spans=tuple(span for report in reports for span in report.spans),
        )

    def imitate(
        self, demonstrations: Sequence[ScoredPrompt], version: int, meanwhile: Callable[[], None] = _nothing
    ) -> ImitationReport:
        """Take one optimizer step, from policy version `version`, on the mean negative log-likelihood of the
        demonstrations' tokens: prompts with one completion each, that nobody sampled. `meanwhile` as in `update`."""
        batch = BatchSize(
            completions=len(demonstrations),
            tokens=sum(completions.token_ids.size for _, completions in demonstrations),
            max_tokens=self._config.rollout.max_tokens,
        )
        plans, padded_tokens = self._plan(demonstrations)
        requests = []
        for plan in plans:
            indices, micro_batches = _share(plan)
            given = tuple(demonstrations[i] for i in indices)
            requests.append((ImitationRequest(version, given, micro_batches, batch),))
        what = f"imitating from policy version {version}"
        deadline = self._config.cluster.update_timeout_seconds
        reports = self._call("imitate", requests, what, deadline, meanwhile)
        (step,) = _merge_steps(reports)
        spans = tuple(span for report in reports for span in report.spans)
        return ImitationReport(version + 1, step, batch.tokens, padded_tokens, spans)

    def score(self, groups: Sequence[ScoredPrompt], *, plain: bool = False) -> list[GroupScore]:
        """The policy's log-probabilities of completions, one score per group and in their order.

        `plain` gives each completion a row of its own, without the shared prompt: slower, and the same but for
        rounding, so that a difference shows which of the two is wrong.
        """
        plans, _ = self._plan(groups)
        requests = []
        for plan in plans:
            indices, micro_batches = _share(plan)
            requests.append((tuple(groups[i] for i in indices), micro_batches, plain))
        answers = self._call("score", requests, "scoring", self._config.cluster.update_timeout_seconds)
        scores: dict[int, GroupScore] = {}
        for plan, answer in zip(plans, answers, strict=True):
            order = [i for micro_batch in plan if not micro_batch.padding for i in micro_batch.groups]
            scores.update(zip(order, answer, strict=True))
        return [scores[i] for i in range(len(groups))]

    def export_weights(self, version: int, *, to_newcomers: bool = True) -> WeightUpdate:
        """All parameters as policy version `version`, offered by `cluster.weight_transport`.

        `to_newcomers`: an engine may lack what is frozen. Raises ValueError where the ranks' parameters differ.
        """
        arguments = [(version, to_newcomers)] * len(self._ranks)
        return merged(self._call("export_weights", arguments, f"publishing policy version {version}", self._sync))

    def send_weights(self) -> Call:
        """Let all ranks move what they exported, while the engines receive; `finish` waits for it."""
        return self._start("send_weights", "sending weights")

    def release_weights(self) -> None:
        """Free what was exported, when the engines have it."""
        self.finish(self._start("release_weights", "freeing exported weights"))

    def weight_group_address(self) -> str:
        """host:port at which a weight group can meet."""
        (address,) = self._wait([self._ranks[0].rendezvous_address.remote()], "finding an address", self._sync)
        return str(address)

    def join_weight_group(self, address: str, world_size: int) -> Call:
        """Let all ranks meet the engines of a broadcast, which must join meanwhile; `finish` waits for it."""
        return self._start("join_weight_group", "joining the weight group", WeightGroup(address, world_size, 0))

    def finish(self, call: Call) -> None:
        """Wait for a call that was started."""
        self._wait(call.references, call.what, self._sync)

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
        self._place.give_back()

    def _plan(self, pairs: Sequence[ScoredPrompt]) -> tuple[list[list[MicroBatch]], int]:
        """The ranks' micro-batches, and the tokens that they push through the model, padding included."""
        lengths = [packing.row_tokens(prompt, completions) for prompt, completions in pairs]
        settings = self._config.learner
        plans = packing.plan(lengths, settings.world_size, settings.micro_batch_tokens)
        cut = [micro_batch.groups for plan in plans for micro_batch in plan]
        return plans, sum(len(rows) * max(lengths[i] for i in rows) for rows in cut)

    def _create(self, rank: int) -> Any:
        settings = self._config.learner
        environment = {"OMP_NUM_THREADS": str(settings.threads)}
        if settings.gpus_per_rank == 0:
            environment["DS_ACCELERATOR"] = "cpu"
        options = {
            **self._place.options(bundle=rank),
            "name": f"{self._name}-{rank}",
            "num_cpus": settings.cpus_per_rank,
            "num_gpus": settings.gpus_per_rank,
            "runtime_env": {"env_vars": environment},
        }
        return ray.remote(LearnerActor).options(**options).remote(self._config, rank, f"{self._name}-{rank}")

    @property
    def _sync(self) -> float:
        return self._config.cluster.sync_timeout_seconds

    def _start(self, method: str, what: str, *arguments: Any) -> Call:
        return Call([getattr(actor, method).remote(*arguments) for actor in self._ranks], what)

    def _call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        what: str,
        deadline_seconds: float,
        meanwhile: Callable[[], None] = _nothing,
    ) -> list[Any]:
        references = [
            getattr(actor, method).remote(*given) for actor, given in zip(self._ranks, arguments, strict=True)
        ]
        return self._wait(references, what, deadline_seconds, meanwhile)

    def _wait(
        self,
        references: list[Any],
        what: str,
        deadline_seconds: float,
        meanwhile: Callable[[], None] = _nothing,
    ) -> list[Any]:
        """The answers of rank 0, 1, ...; the first failure of any rank, whichever is still waiting for whom."""
        end = time.monotonic() + deadline_seconds
        waiting = list(references)
        while waiting:
            left = max(0.0, end - time.monotonic())
            ready, waiting = ray.wait(waiting, timeout=min(left, _MEANWHILE_SECONDS))
            meanwhile()
            if not ready and time.monotonic() >= end:
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
