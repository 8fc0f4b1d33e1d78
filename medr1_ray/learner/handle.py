"""The driver's handle of the learner: W ranks in one placement group; an update is one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import ray

from medr1_ray.base.manifest import NotSavedError, StoredFile
from medr1_ray.cluster.driver_files import DriverFiles
from medr1_ray.cluster.pending_calls import remote
from medr1_ray.cluster.placement import Place, SharedPlace, ask_for_place, wait_for_place
from medr1_ray.cluster.resources import NotStartedError, demands
from medr1_ray.config import Config
from medr1_ray.learner import grpo
from medr1_ray.learner.actor import LearnerActor
from medr1_ray.learner.batching import (
    Meanwhile,
    Plan,
    all_spans,
    batch_size,
    groups_that_teach,
    imitation_requests,
    joined,
    logprobs_requests,
    merged_steps,
    mini_batches,
    nothing,
    pairs_of,
    plan,
    update_requests,
)
from medr1_ray.learner.messages import (
    GroupLogprobs,
    ImitationReport,
    LearnerLateError,
    UpdateReport,
)
from medr1_ray.learner.prefetch import Prefetch, ReferenceLogprobs
from medr1_ray.learner.rank_calls import Call as Call
from medr1_ray.learner.rank_calls import Deadline, has_ended, start_rank, wait_for
from medr1_ray.model.operations import forward_flops, peak_flops
from medr1_ray.model.shape import read_shape
from medr1_ray.types import CompletedPrompt, Group
from medr1_ray.weights.buckets import merge_updates
from medr1_ray.weights.messages import WeightGroup, WeightUpdate

_END_SECONDS = 30.0


@dataclass(frozen=True)
class _Preparation:
    """Work under way that an update needs, on these groups as they were dealt out."""

    call: Call
    pairs: list[CompletedPrompt]
    plan: Plan


class Learner:
    """The DeepSpeed ranks as one object. The constructor asks for the actors, `start` waits for them.

    Consumes scored groups, produces reports and weight updates; waits for all ranks in every call, each with a
    deadline. `meanwhile` is called repeatedly during the wait: the pool goes on with what its actors answer. Methods
    raise LearnerLostError when a rank dies or is late, naming it and what it was doing, RuntimeError when it failed
    otherwise, and re-raise a rank's own ValueError.

    Args:
        files: of the driver's, which the nodes of the ranks must see; none where all run on the driver's own.
        name: the ranks are the actors `<name>-0`, `<name>-1`, ...
    """

    def __init__(self, config: Config, files: DriverFiles = (), name: str = "learner") -> None:
        self._config = config
        self._files = files
        self._name = name
        settings, cluster = config.learner, config.cluster
        self._start_deadline = Deadline("cluster.start_timeout_seconds", cluster.start_timeout_seconds)
        self._update_deadline = Deadline("cluster.update_timeout_seconds", cluster.update_timeout_seconds)
        self._sync_deadline = Deadline("cluster.sync_timeout_seconds", cluster.sync_timeout_seconds)
        own = demands(config)[0]
        if cluster.colocated:
            # Each bundle must hold a rank and its engine, because a placement group cannot grow later.
            own = replace(own, cpus=own.cpus + config.rollout.cpus_per_actor, gpus=1.0)
        self._place = ask_for_place(name, own, "PACK")
        self._ranks: list[Any] = [
            start_rank(config, self._place, rank, f"{name}-{rank}") for rank in range(settings.world_size)
        ]
        self._homes: dict[str, set[int]] = {}  # the ranks that prepare a group, by its prompt's id
        portion = settings.world_size * settings.micro_batch_tokens, config.train.max_staleness
        self._prefetch = Prefetch(self._start_preparing, self._finish_preparing, *portion, required=config.takes_kl)
        self._patching = Prefetch(self._start_patching, self._finish_preparing, *portion, required=False)
        self._shape = read_shape(config.model.folder)
        self._peak_flops: float | None = None
        self._asked_saving: Call | None = None

    def start(self, say: Callable[[str], None] = print, meanwhile: Meanwhile = nothing) -> None:
        """Wait until every rank is placed and has loaded the model.

        `say` takes a line about what is missing; `meanwhile` is called repeatedly while this waits.
        Raises ValueError where a rank's node and the driver's do not see the same files, NotStartedError where a rank
        does not start or is late, and LearnerLostError where its process was killed.
        """
        try:
            self._start(say, meanwhile)
        except LearnerLateError as error:
            # Nothing is lost yet, and another start would probably take as long.
            raise NotStartedError(str(error)) from error

    def _start(self, say: Callable[[str], None], meanwhile: Meanwhile) -> None:
        wait_for_place(self._place, self._config.cluster.placement_timeout_seconds, say, meanwhile)
        # Before anything is loaded: ranks write the checkpoints that the driver publishes.
        opening = LearnerActor.open_log, "opening its log", self._start_deadline, self._files, self._config.run.dir
        for mark in self._call_all(*opening, meanwhile=meanwhile):
            mark.require()
            mark.path.unlink()
        if len({node for _, node in self.nodes()}) == 1:
            meeting = self._ask_first(LearnerActor.rendezvous_file, self._start_deadline, meanwhile)
        else:
            meeting = f"tcp://{self._ask_first(LearnerActor.rendezvous_address, self._start_deadline, meanwhile)}"
        device, *_ = self._call_all(LearnerActor.start, "starting", self._start_deadline, meeting, meanwhile=meanwhile)
        peak = self._config.learner.peak_flops or peak_flops(device)
        self._peak_flops = peak and peak * self._config.learner.world_size

    def nodes(self) -> list[tuple[str, str]]:
        """The name of each rank, and its node's hex id."""
        return [(f"{self._name}-{rank}", node) for rank, node in enumerate(self._place.node_ids())]

    def places_on_same_gpus(self) -> Callable[[str], Place]:
        """Places for engines on the ranks' GPUs, one per rank, when they are colocated."""
        free = list(range(self._config.learner.world_size))
        demand = demands(self._config)[1]
        return lambda name: SharedPlace(name, demand, self._place.group, free.pop(0), free)

    def prefetch(self, groups: Sequence[Group]) -> None:
        """Let the ranks begin on groups that the next update will probably take: patches and the reference's
        log-probabilities, while other groups are still being generated. Returns at once. Patches alone with colocated
        engines: an engine that is awake has the GPU's memory."""
        # Without a KL those of equal rewards do not go through the model.
        teaching = [each for each in groups if self._config.takes_kl or not each.rewards.all_equal]
        (self._patching if self._config.cluster.colocated else self._prefetch).begin(teaching)

    def update(self, groups: Sequence[Group], version: int, meanwhile: Meanwhile = nothing) -> UpdateReport:
        """Take `train.updates_per_rollout` passes over these groups, with an optimizer step for each of the
        `train.minibatches` that they are cut into, from policy version `version`.

        Groups whose rewards are all equal skip the model where that changes nothing (no KL), but still count in the
        loss's normalisers, so that the gradient is that of the whole mini-batch.
        """
        config = self._config
        whole = mini_batches(groups, config.train.minibatches)
        batches = [batch_size(pairs_of(part), config.rollout.max_tokens) for part in whole]
        teaching = whole if config.takes_kl else [groups_that_teach(part, config.learner.world_size) for part in whole]
        taken = [group for part in teaching for group in part]
        self._patching.take(taken, version, meanwhile)
        kept = self._prefetch.take(taken, version, meanwhile)
        ready = iter(kept)
        parts = [list(islice(ready, len(part))) for part in teaching]
        requests, padded_tokens = update_requests(parts, batches, config.learner, version, self._homes)
        begun = self._prefetch.begun | self._patching.begun
        self._homes = {id_: ranks for id_, ranks in self._homes.items() if id_ in begun}
        call = self._start_each(
            LearnerActor.update, f"updating from policy version {version}", self._update_deadline, requests
        )
        reports = self._answers(call, meanwhile)
        return UpdateReport(
            version=version + config.train.steps_per_rollout,
            steps=merged_steps(reports),
            statistics=grpo.statistics(report.sums for report in reports),
            groups=len(groups),
            groups_zero_variance=sum(group.rewards.all_equal for group in groups),
            groups_skipped=len(groups) - len(kept),
            tokens=sum(batch.tokens for batch in batches),
            padded_tokens=padded_tokens,
            passes=config.train.updates_per_rollout,
            model_flops=forward_flops(self._shape, pairs_of(kept)).update(config),
            peak_flops=self._peak_flops,
            spans=all_spans(reports),
        )

    def imitate(
        self, demonstrations: Sequence[CompletedPrompt], version: int, meanwhile: Meanwhile = nothing
    ) -> ImitationReport:
        """Take one optimizer step, from policy version `version`, on the mean negative log-likelihood of the
        demonstrations' tokens: prompts with one given completion each."""
        config = self._config
        batch = batch_size(demonstrations, config.rollout.max_tokens)
        dealt = plan(demonstrations, config.learner)
        requests = imitation_requests(demonstrations, dealt, batch, version)
        call = self._start_each(
            LearnerActor.imitate, f"imitating from policy version {version}", self._update_deadline, requests
        )
        reports = self._answers(call, meanwhile)
        (step,) = merged_steps(reports)
        return ImitationReport(
            version=version + 1,
            step=step,
            tokens=batch.tokens,
            padded_tokens=dealt.padded_tokens,
            model_flops=forward_flops(self._shape, demonstrations).update(config),
            peak_flops=self._peak_flops,
            spans=all_spans(reports),
        )

    def logprobs(
        self, groups: Sequence[CompletedPrompt], *, plain: bool = False, meanwhile: Meanwhile = nothing
    ) -> list[GroupLogprobs]:
        """The policy's log-probabilities of completions, one result per group and in their order.

        `plain` gives each completion a row of its own instead of a shared prompt: slower, and equal up to rounding, so
        that a difference shows which of the two is wrong.
        """
        dealt = plan(groups, self._config.learner)
        requests = logprobs_requests(groups, dealt, plain=plain)
        what = "computing log-probabilities"
        answers = self._answers(
            self._start_each(LearnerActor.logprobs, what, self._update_deadline, requests), meanwhile
        )
        visual_tokens = {
            row.group: each.visual_tokens
            for rows, answer in zip(dealt.answered, answers, strict=True)
            for row, each in zip(rows, answer, strict=True)
        }
        found = joined(groups, dealt, [[each.policy_logprobs for each in answer] for answer in answers])
        return [GroupLogprobs(logprobs, visual_tokens[i]) for i, logprobs in enumerate(found)]

    def publish_weights(
        self, version: int, *, to_newcomers: bool = True, meanwhile: Meanwhile = nothing
    ) -> WeightUpdate:
        """Publish all parameters as policy version `version` through `cluster.weight_transport`.

        `to_newcomers`: an engine may lack the frozen parameters. Raises ValueError where the ranks' parameters differ.
        """
        publishing = LearnerActor.publish_weights, f"publishing policy version {version}", self._sync_deadline
        return merge_updates(self._call_all(*publishing, version, to_newcomers, meanwhile=meanwhile))

    def send_weights(self) -> Call:
        """Let all ranks move what they published, while the engines receive; `finish` waits for it."""
        return self._start_all(LearnerActor.send_weights, "sending weights", self._sync_deadline)

    def release_weights(self, meanwhile: Meanwhile = nothing) -> None:
        """Free what was published, once the engines have loaded it."""
        releasing = LearnerActor.release_weights, "releasing published weights", self._sync_deadline
        self._call_all(*releasing, meanwhile=meanwhile)

    def weight_group_address(self) -> str:
        """host:port at which a weight group connects."""
        return self._ask_first(LearnerActor.rendezvous_address, self._sync_deadline)

    def join_weight_group(self, address: str, world_size: int) -> Call:
        """Let all ranks meet the engines of a broadcast, which must join at the same time; `finish` waits for it."""
        group = WeightGroup(address, world_size, 0)
        return self._start_all(LearnerActor.join_weight_group, "joining the weight group", self._sync_deadline, group)

    def finish(self, call: Call) -> None:
        """Wait for a call that was started."""
        self._answers(call)

    def begin_save(self, folder: Path, meanwhile: Meanwhile = nothing) -> None:
        """Let the ranks copy a checkpoint, and write it into `folder` (on a file system that all share) while they go
        on with other calls; without `run.write_behind` this waits until it is written. `finish_save` must follow."""
        self._asked_saving = None  # the answer would be about the save before
        saving = LearnerActor.begin_save, f"saving to {folder}", self._update_deadline
        self._call_all(*saving, folder.resolve(), self._config.run.write_behind, meanwhile=meanwhile)

    def is_saving(self) -> bool:
        """Whether a rank is still writing. Ranks that are busy otherwise are not waited for, and count as writing."""
        if self._asked_saving is None:
            self._asked_saving = self._start_all(LearnerActor.is_saving, "writing", self._update_deadline)
        if not has_ended(self._asked_saving):
            return True
        call, self._asked_saving = self._asked_saving, None
        return any(self._answers(call))

    def finish_save(self, meanwhile: Meanwhile = nothing, *, briefly: bool = False) -> list[StoredFile]:
        """Wait until all ranks have written; returns their files: Hugging Face files on top, `learner_state/` for
        `load`. Raises NotSavedError where one could not write; none is writing any more.

        `briefly`: no longer than `cluster.sync_timeout_seconds`, as after an error of a rank others may not answer.
        """
        deadline = self._sync_deadline if briefly else self._update_deadline
        written = self._call_all(LearnerActor.finish_save, "writing a checkpoint", deadline, meanwhile=meanwhile)
        for of_rank in written:
            if isinstance(of_rank, NotSavedError):
                raise of_rank
        return [file for files in written for file in files]

    def load(self, folder: Path, meanwhile: Meanwhile = nothing) -> None:
        """Continue from a checkpoint."""
        loading = LearnerActor.load, f"loading {folder}", self._start_deadline
        self._call_all(*loading, folder.resolve(), meanwhile=meanwhile)

    def close(self) -> None:
        """End the actors and give back their place; safe to call twice. Their names can be used again afterwards."""
        for actor in self._ranks:
            ray.kill(actor)
        # Answered with an error as soon as the actor is gone.
        ended = [remote(actor, LearnerActor.rendezvous_address) for actor in self._ranks]
        if ended:
            ray.wait(ended, num_returns=len(ended), timeout=_END_SECONDS)
        self._ranks = []
        self._place.give_back()

    def _ask_first(self, method: Callable[..., str], deadline: Deadline, meanwhile: Meanwhile = nothing) -> str:
        """Rank 0's answer: a place on its node where others can join it."""
        (place,) = self._answers(Call([remote(self._ranks[0], method)], "finding an address", deadline), meanwhile)
        return str(place)

    def _start_preparing(self, groups: Sequence[Group]) -> _Preparation:
        pairs = pairs_of(groups)
        dealt = plan(pairs, self._config.learner, self._homes)
        requests = logprobs_requests(pairs, dealt)
        call = self._start_each(LearnerActor.prepare, "preparing groups", self._update_deadline, requests)
        return self._preparation(call, pairs, dealt)

    def _start_patching(self, groups: Sequence[Group]) -> _Preparation:
        pairs = pairs_of(groups)
        dealt = plan(pairs, self._config.learner)
        requests = [
            tuple(groups[i].prompt.image for i in dict.fromkeys(row.group for row in rows)) for rows in dealt.answered
        ]
        call = self._start_each(LearnerActor.begin_patches, "preparing images", self._update_deadline, requests)
        return self._preparation(call, pairs, dealt)

    def _preparation(self, call: Call, pairs: list[CompletedPrompt], dealt: Plan) -> _Preparation:
        for rank, rows in enumerate(dealt.answered):
            for row in rows:
                self._homes.setdefault(pairs[row.group][0].id, set()).add(rank)
        return _Preparation(call, pairs, dealt)

    def _finish_preparing(self, preparation: _Preparation, meanwhile: Meanwhile) -> ReferenceLogprobs:
        answers, pairs = self._answers(preparation.call, meanwhile), preparation.pairs
        if not any(answers):  # without a KL there are no log-probabilities
            return {}
        found = joined(pairs, preparation.plan, answers)
        return {prompt.id: logprobs for (prompt, _), logprobs in zip(pairs, found, strict=True)}

    def _call_all(
        self,
        method: Callable[..., Any],
        what: str,
        deadline: Deadline,
        *arguments: Any,
        meanwhile: Meanwhile = nothing,
    ) -> list[Any]:
        """The answers of all ranks to the same call."""
        return self._answers(self._start_all(method, what, deadline, *arguments), meanwhile)

    def _answers(self, call: Call, meanwhile: Meanwhile = nothing) -> list[Any]:
        return wait_for(call, self._name, meanwhile)

    def _start_all(self, method: Callable[..., Any], what: str, deadline: Deadline, *arguments: Any) -> Call:
        return Call([remote(actor, method, *arguments) for actor in self._ranks], what, deadline)

    def _start_each(self, method: Callable[..., Any], what: str, deadline: Deadline, requests: Sequence[Any]) -> Call:
        """Start a call with a request of its own for each rank."""
        references = [
            remote(actor, method, request) for actor, request in zip(self._ranks, requests, strict=True)
        ]
        return Call(references, what, deadline)
