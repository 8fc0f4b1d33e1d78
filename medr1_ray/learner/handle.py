"""The driver's handle on the learner: W actors in one placement group, and an update as one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from medr1_ray.cluster.placement import Place, SharedPlace, ask_for_place, wait_for_place
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config
from medr1_ray.learner import grpo
from medr1_ray.learner.actor import LearnerActor
from medr1_ray.learner.batching import (
    Meanwhile,
    all_spans,
    batch_size,
    groups_that_teach,
    imitation_request,
    in_order,
    merged_steps,
    nothing,
    plan,
    share,
    update_request,
)
from medr1_ray.learner.messages import GroupScore, ImitationReport, UpdateReport
from medr1_ray.learner.prefetch import EarlyWork, ReferenceLogprobs
from medr1_ray.model.operations import forward_flops, peak_flops
from medr1_ray.model.shape import read_shape
from medr1_ray.types import Group, ScoredPrompt
from medr1_ray.weights.buckets import merge_offers
from medr1_ray.weights.messages import WeightGroup, WeightUpdate

_MEANWHILE_SECONDS = 0.2
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Call:
    """A call of all ranks that is under way."""

    references: list[Any]
    what: str


@dataclass(frozen=True)
class _Preparation:
    """The ranks' answers to come, and the prompt ids in the order of each rank's answer."""

    answers: list[Any]
    order: list[list[str]]


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
        self._early = EarlyWork(
            self._start_preparing,
            self._finish_preparing,
            settings.world_size * settings.micro_batch_tokens,
            config.train.max_staleness,
            required=config.takes_kl,
        )
        self._shape = read_shape(config.model.folder)
        self._peak_flops: float | None = None

    def start(self, say: Callable[[str], None] = print, meanwhile: Meanwhile = nothing) -> None:
        """Wait until every rank is placed and has loaded the model.

        `say` takes what is missing, `meanwhile` is called again and again.
        """
        wait_for_place(self._place, self._config.cluster.placement_timeout_seconds, say, meanwhile)
        deadline = self._config.cluster.start_timeout_seconds
        (address,) = self._wait([self._ranks[0].rendezvous_address.remote()], "finding an address", deadline, meanwhile)
        device, *_ = self._call("start", [(address,)] * len(self._ranks), "starting", deadline, meanwhile)
        peak = self._config.learner.peak_flops or peak_flops(device)
        self._peak_flops = peak and peak * self._config.learner.world_size

    def places_beside(self) -> Callable[[str], Place]:
        """Places for engines on the ranks' GPUs, one beside each rank, when they are colocated."""
        free = list(range(self._config.learner.world_size))
        demand = demands(self._config)[1]
        return lambda name: SharedPlace(name, demand, self._place.group, free.pop(0), free)

    def offer(self, groups: Sequence[Group]) -> None:
        """Groups that the next update will probably take: the ranks begin on patches and the reference's
        log-probabilities while others are generated. Returns at once, and does nothing where that takes place on the
        ranks' GPUs: an engine that is awake has their memory."""
        if not self._config.cluster.colocated:
            self._early.offer(groups)

    def update(self, groups: Sequence[Group], version: int, meanwhile: Meanwhile = nothing) -> UpdateReport:
        """Take `train.updates_per_rollout` optimizer steps on these groups, from policy version `version`.

        `meanwhile` is called again and again until the ranks are done.
        Groups whose rewards are all equal do not go through the model where that changes nothing (no KL): they count in
        the loss's normalisers all the same, so that the gradient is the whole batch's.
        """
        config = self._config
        batch = batch_size(_pairs(groups), config.rollout.max_tokens)
        equal = [group.rewards.all_equal for group in groups]
        kept = list(groups) if config.takes_kl else groups_that_teach(groups, equal, config.learner.world_size)
        kept = self._early.take(kept, version, meanwhile)
        plans, padded_tokens = plan(_pairs(kept), config.learner)
        requests = [(update_request(kept, of_rank, batch, version),) for of_rank in plans]
        deadline = config.cluster.update_timeout_seconds
        reports = self._call("update", requests, f"updating from policy version {version}", deadline, meanwhile)
        return UpdateReport(
            version=version + config.train.updates_per_rollout,
            steps=merged_steps(reports),
            statistics=grpo.statistics(report.sums for report in reports),
            groups=len(groups),
            groups_zero_variance=sum(equal),
            groups_skipped=len(groups) - len(kept),
            tokens=batch.tokens,
            padded_tokens=padded_tokens,
            model_flops=forward_flops(self._shape, _pairs(kept)).update(config),
            peak_flops=self._peak_flops,
            spans=all_spans(reports),
        )

    def imitate(
        self, demonstrations: Sequence[ScoredPrompt], version: int, meanwhile: Meanwhile = nothing
    ) -> ImitationReport:
        """Take one optimizer step, from policy version `version`, on the mean negative log-likelihood of the
        demonstrations' tokens: prompts with one completion each, that nobody sampled. `meanwhile` as in `update`."""
        config = self._config
        batch = batch_size(demonstrations, config.rollout.max_tokens)
        plans, padded_tokens = plan(demonstrations, config.learner)
        requests = [(imitation_request(demonstrations, of_rank, batch, version),) for of_rank in plans]
        deadline = config.cluster.update_timeout_seconds
        reports = self._call("imitate", requests, f"imitating from policy version {version}", deadline, meanwhile)
        (step,) = merged_steps(reports)
        return ImitationReport(
            version=version + 1,
            step=step,
            tokens=batch.tokens,
            padded_tokens=padded_tokens,
            model_flops=forward_flops(self._shape, demonstrations).update(config),
            peak_flops=self._peak_flops,
            spans=all_spans(reports),
        )

    def score(self, groups: Sequence[ScoredPrompt], *, plain: bool = False) -> list[GroupScore]:
        """The policy's log-probabilities of completions, one score per group and in their order.

        `plain` gives each completion a row of its own, without the shared prompt: slower, and the same but for
        rounding, so that a difference shows which of the two is wrong.
        """
        plans, _ = plan(groups, self._config.learner)
        requests = []
        for of_rank in plans:
            indices, micro_batches = share(of_rank)
            requests.append((tuple(groups[i] for i in indices), micro_batches, plain))
        answers = self._call("score", requests, "scoring", self._config.cluster.update_timeout_seconds)
        scores: dict[int, GroupScore] = {}
        for of_rank, answer in zip(plans, answers, strict=True):
            scores.update(zip(in_order(of_rank), answer, strict=True))
        return [scores[i] for i in range(len(groups))]

    def export_weights(self, version: int, *, to_newcomers: bool = True) -> WeightUpdate:
        """All parameters as policy version `version`, offered by `cluster.weight_transport`.

        `to_newcomers`: an engine may lack what is frozen. Raises ValueError where the ranks' parameters differ.
        """
        arguments = [(version, to_newcomers)] * len(self._ranks)
        return merge_offers(self._call("export_weights", arguments, f"publishing policy version {version}", self._sync))

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
        """End the actors and give back their place; safe to call twice. Their names are free then."""
        for actor in self._ranks:
            ray.kill(actor)
        ended = [actor.rendezvous_address.remote() for actor in self._ranks]  # an error once the actor is gone
        ray.wait(ended, num_returns=len(ended), timeout=_END_SECONDS) if ended else None
        self._ranks = []
        self._place.give_back()

    def _create(self, rank: int) -> Any:
        settings = self._config.learner
        # Threads that wait must sleep: spinning, on cores that engines keep busy, they hold up those they wait for.
        environment = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "passive"}
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

    def _start_preparing(self, groups: Sequence[Group]) -> _Preparation:
        pairs = _pairs(groups)
        plans, _ = plan(pairs, self._config.learner)
        answers = []
        for actor, of_rank in zip(self._ranks, plans, strict=True):
            indices, micro_batches = share(of_rank)
            answers.append(actor.prepare.remote(tuple(pairs[i] for i in indices), micro_batches))
        return _Preparation(answers, [[groups[i].prompt.id for i in in_order(of_rank)] for of_rank in plans])

    def _finish_preparing(self, preparation: _Preparation, meanwhile: Meanwhile) -> ReferenceLogprobs:
        deadline = self._config.cluster.update_timeout_seconds
        answers = self._wait(preparation.answers, "preparing groups", deadline, meanwhile)
        found: ReferenceLogprobs = {}
        for ids, logprobs in zip(preparation.order, answers, strict=True):
            found |= dict(zip(ids, logprobs, strict=False))  # without a KL there are none
        return found

    def _call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        what: str,
        deadline_seconds: float,
        meanwhile: Meanwhile = nothing,
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
        meanwhile: Meanwhile = nothing,
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


def _pairs(groups: Sequence[Group]) -> list[ScoredPrompt]:
    return [(group.prompt, group.completions) for group in groups]
