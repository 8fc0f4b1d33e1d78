"""The rollout pool: prompts in, scored groups out. `group_ledger.py` keeps the accounts; this file adds Ray.

Consumes: prompts from the stream. Produces: `Group`s, oldest first. Waits for: rollout actors (`actors.py`), which come
and go, and reward actors; every call has a deadline. Unblocked by: `load_weights`, which makes room for the next
groups.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ray.exceptions import RayError

from medr1_ray.base.stopping import break_off_if_asked
from medr1_ray.cluster.pending_calls import describe_error, is_node_loss
from medr1_ray.config import Config
from medr1_ray.data.stream import PromptStream
from medr1_ray.pool.actor_states import ActorCounts
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.engine_calls import EngineCalls
from medr1_ray.pool.calls.failures import raise_if_image_is_lost
from medr1_ray.pool.calls.generation import Generation
from medr1_ray.pool.calls.measurements import Measurements
from medr1_ray.pool.group_ledger import GroupStage, Ledger, room
from medr1_ray.pool.incidents import SET_ASIDE, Incidents
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.pool.suspects import Suspects, assignments
from medr1_ray.pool.workload import Workload
from medr1_ray.rewards.advantages import group_advantages
from medr1_ray.rewards.functions import RewardError
from medr1_ray.rollout.actor import GroupsEndedError, NotServingError
from medr1_ray.rollout.defaults import GROUPS_AHEAD, sequences_at_once
from medr1_ray.types import Completions, Continuations, Group, Likelihoods, Prompt, Rewards, Sampling, Span
from medr1_ray.weights.messages import LoadReport, WeightUpdate

_POLL_SECONDS = 1.0
# With none in between that was answered, it is not the questions.
_MOST_SET_ASIDE = 3
# With none in between that was scored, the reward function is broken, not the completion.
_MOST_REWARD_ERRORS = 32


class RolloutPool:
    """Keeps rollout actors busy and hands out scored groups.

    Args:
        config: the run's settings.
        actors: the rollout actors.
        reward_actors: those that score.
        stream: source of training prompts; None where nothing is trained.
        ledger: the run's accounts (totals restored when it is resumed).

    `renew_weights` loads the current version once more, where newcomers cannot do so on their own: without it a run
    whose actors were all lost would wait in vain for those that replace them.
    """

    def __init__(
        self,
        config: Config,
        actors: RolloutActors,
        reward_actors: RewardActors,
        stream: PromptStream | None,
        ledger: Ledger,
    ) -> None:
        self._config = config
        self._actors = actors
        self._reward_actors = reward_actors
        self._incidents = Incidents(config.run.dir, actors.say)
        self._reward_errors_in_a_row = 0
        self._suspects = Suspects()
        self._ended_generating: dict[str, str] = {}  # lost actors by name, and how, until their groups are issued again
        self._stream = stream
        self.engines = EngineCalls(actors)
        self.renew_weights: Callable[[], None] | None = None
        self._generation = Generation(actors)
        self.measurements = Measurements(config.rollout, actors, self._generation, self._wait, self._on_lost)
        actors.meanwhile = self._fetch_and_score
        self._spans: list[Span] = []
        self._evaluations = itertools.count()
        self._training = Workload(
            "train",
            ledger,
            Sampling(
                group_size=config.train.group_size,
                max_tokens=config.rollout.max_tokens,
                temperature=config.rollout.temperature,
                top_p=config.rollout.top_p,
                top_k=config.rollout.top_k,
            ),
        )
        self._workloads = [self._training]

    @property
    def ledger(self) -> Ledger:
        return self._training.ledger

    @property
    def rollout_names(self) -> list[str]:
        """Names of the rollout actors that are serving."""
        return list(self._actors.serving)

    def actor_counts(self) -> ActorCounts:
        return self._actors.counts()

    def fill(self, versions_ahead: int) -> None:
        """Issue as many groups as can be used before they are too old.

        `versions_ahead` is the learner's version at the next use minus the version that the engines hold: 0 when
        weights have just been loaded, `train.steps_per_rollout` while the learner updates.
        """
        train = self._config.train
        missing = room(
            self.ledger.counts().in_flight,
            groups_per_step=train.prompts_per_step,
            versions_per_step=train.steps_per_rollout,
            max_staleness=train.max_staleness,
            versions_ahead=versions_ahead,
        )
        assert self._stream is not None
        for prompt in self._stream.draw(missing):
            self._issue(prompt)
        self._assign()

    def issue_again(self, prompts: Sequence[Prompt]) -> None:
        """Issue the prompts that an interrupted run had issued but not used, before the stream goes on."""
        for prompt in prompts:
            self._issue(prompt)

    def unused_prompt_ids(self) -> list[str]:
        """Ids of the groups in flight, in the order of issue."""
        return list(self._training.prompts)

    def take(self, version: int, meanwhile: Callable[[Sequence[Group]], None] = lambda groups: None) -> list[Group]:
        """Wait for `prompts_per_step` groups that are young enough for the learner at `version`.

        While it waits, `meanwhile` is given the groups that are ready. With dynamic sampling, groups of equal rewards
        are dropped and replaced until the refill limit is reached.

        Raises:
            RuntimeError: a reward actor failed, or no rollout actor is left and none comes in time.
        """
        wanted = self._config.train.prompts_per_step
        refills = wanted * self._config.train.max_refills if self._config.train.dynamic_sampling else 0
        while True:
            for prompt_id in self.ledger.drop_stale(version, self._config.train.max_staleness):
                self._training.discard(prompt_id)
            for prompt_id in self.ledger.at(GroupStage.READY) if refills else ():
                if refills > 0 and self._training.groups[prompt_id].rewards.all_equal:
                    self._training.drop(prompt_id, "zero_variance")
                    refills -= 1
            # In the order of issue: the oldest first. Before `fill`: what is scored during it has not been looked at.
            ready = self.ledger.at(GroupStage.READY)[:wanted]
            # In every round, because dropped groups make room for new ones.
            self.fill(versions_ahead=0)
            if len(ready) == wanted:
                return [self._training.use(prompt_id) for prompt_id in ready]
            meanwhile([self._training.groups[prompt_id] for prompt_id in ready])
            self._wait()

    def run(self, prompts: Iterable[Prompt], sampling: Sampling) -> list[Group]:
        """The groups of an evaluation's prompts, in order, without images; draws no more than keep all actors busy."""
        ledger = Ledger(time.monotonic)
        work = Workload(f"evaluation-{next(self._evaluations)}", ledger, sampling, source=iter(prompts))
        self._workloads.append(work)
        try:
            while True:
                more = work.draw(max(1, len(self._actors.serving)) * sequences_at_once(self._config.rollout))
                if not work.prompts:
                    break
                self._assign()
                # Until they have enough, engines begin while further prompts are encoded.
                self.poll() if more else self._wait()
        finally:
            self._workloads.remove(work)
        return [work.groups[prompt_id] for prompt_id in work.asked]

    def likelihoods(self, prompts: Sequence[Prompt], continuations: Sequence[Continuations]) -> list[Likelihoods]:
        """Likelihoods of each prompt's continuations, in the given order; those of a lost actor are asked of others.

        Raises:
            RuntimeError: actors were lost repeatedly, or none is left and none comes in time.
        """
        return self.measurements.likelihoods(prompts, continuations)

    def load_weights(self, update: WeightUpdate, break_off: Callable[[], None] | None = None) -> list[LoadReport]:
        """Bring every rollout actor to `update.version`; requests in flight go on with the new weights.

        `break_off` ends a broadcast in which one was lost (`RolloutActors.load_weights`).
        """
        return self._actors.load_weights(update, break_off)

    def scale(self, actors: int, why: str) -> None:
        """Set the wanted number of rollout actors; they come and go in the background."""
        self._actors.scale(actors, why)

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Handle what has arrived, waiting this long for the first answer, and let actors come and go.

        Raises:
            RuntimeError: a reward actor failed, or no rollout actor is left and none comes in time.
        """
        self._look_after(timeout_seconds)
        # Last, so that groups of an actor that was given up are assigned again in this call.
        self._assign()

    def finish(self) -> None:
        """Wait for the answers still under way, without using them, and assign nothing more: the actors are free.

        Raises:
            RuntimeError: as `poll`.
        """
        at = self.ledger.at
        while at(GroupStage.GENERATING) or at(GroupStage.SCORING) or self.measurements.begun:
            self._look_after(_POLL_SECONDS)
            self._generation.send()

    def drain_spans(self) -> list[Span]:
        """The spans of generation and scoring since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def wait_until_up(self) -> None:
        """Wait until at least one actor can load weights; raises RuntimeError as `RolloutActors.wait_until_up`."""
        self._actors.wait_until_up(1)

    def _wait(self) -> None:
        break_off_if_asked()
        self.poll(_POLL_SECONDS)
        if self.renew_weights is not None and self._actors.up and not self._actors.serving:
            self.renew_weights()

    def _fetch_and_score(self) -> None:
        self._reward_actors.send()
        self._generation.send()

    def _look_after(self, timeout_seconds: float) -> None:
        self._actors.poll(timeout_seconds)
        self._reward_actors.send()
        self._give_up_the_overdue()
        for name in self._actors.take_gone():
            self._issue_again_after(name)
        for name in self._actors.draining:
            # An actor may still be generating groups of an evaluation.
            if not any(work.ledger.load_of([name])[name] for work in self._workloads):
                self._actors.has_drained(name)

    def _assign(self) -> None:
        """Give waiting groups to the least loaded actors, and suspects to idle ones (`assignments`)."""
        serving = list(self._actors.serving)
        load = dict.fromkeys(serving, 0)
        for work in self._workloads:
            for name, groups in work.ledger.load_of(serving).items():
                load[name] += groups * work.sampling.group_size
        waiting = {id_: work for work in self._workloads for id_ in work.ledger.at(GroupStage.WAITING)}
        sizes = {prompt_id: work.sampling.group_size for prompt_id, work in waiting.items()}
        closed = {work.ledger.actor_of(suspect) for work in self._workloads for suspect in self._suspects}
        most = sequences_at_once(self._config.rollout) + GROUPS_AHEAD * self._training.sampling.group_size
        for prompt_id, name in assignments(sizes, load, most, self._suspects, closed).items():
            work = waiting[prompt_id]
            work.ledger.assign(prompt_id, name)
            self._generation.ask(
                name,
                f"{work.name}/{prompt_id}",
                work.prompts[prompt_id],
                work.sampling,
                then=partial(self._on_generated, work, name),
                otherwise=partial(self._on_not_generated, work, prompt_id),
            )
        self._generation.send()

    def _on_generated(self, work: Workload, actor: str, completions: Completions) -> None:
        # A late answer: the group has been issued again or used. Scoring it would count it twice.
        if not work.ledger.generated(completions.prompt_id, actor, int(completions.versions.min())):
            return
        self._suspects.generated(completions.prompt_id)
        self._spans.append(completions.span)
        work.completions[completions.prompt_id] = completions
        self._reward_actors.score(
            completions,
            work.prompts[completions.prompt_id].question,
            # An evaluation asks what is right: no function of the user's decides that, nor can it end one.
            judge_only=work is not self._training,
            then=partial(self._on_scored, work),
            otherwise=partial(self._on_not_scored, work, completions.prompt_id),
        )

    def _on_scored(self, work: Workload, rewards: Rewards) -> None:
        self._reward_errors_in_a_row = 0
        self._spans.append(rewards.span)
        work.ledger.scored(rewards.prompt_id)
        prompt, completions = work.prompts[rewards.prompt_id], work.completions.pop(rewards.prompt_id)
        advantages = group_advantages(rewards.total, self._config.loss.advantage_std)
        work.scored(Group(prompt, completions, rewards, advantages))
        # Evaluation questions are not part of the stream.
        if work is self._training:
            assert self._stream is not None
            self._stream.observe(prompt.id, float(rewards.correct.mean()))

    def _on_not_generated(self, work: Workload, prompt_id: str, actor: str, error: RayError) -> None:
        # A broadcast that another member broke took its weights; the sync is repeated, or has been.
        lacks = isinstance(error, NotServingError) and self._actors.may_lack_weights(actor)
        if lacks or isinstance(error, GroupsEndedError):
            work.ledger.put_back(prompt_id, actor)
        else:
            self._on_lost(actor, error)

    def _on_lost(self, actor: str, error: RayError) -> None:
        # Ray raises an error that is a RayTaskError and an instance of the actor's own exception type.
        if isinstance(error, ValueError):  # The engine refused the prompt, as any other engine would.
            raise ValueError(str(getattr(error, "cause", error)))
        raise_if_image_is_lost(error)
        # The end of a node has nothing to do with what was generated there.
        if self._actors.has(actor) and not is_node_loss(error):
            self._ended_generating[actor] = describe_error(error)
        self._actors.on_error(actor, error)

    def _on_not_scored(self, work: Workload, prompt_id: str, error: Exception) -> None:
        if not isinstance(error, RewardError):
            raise error
        record = self._incidents.reward_error(work.prompts[prompt_id], error)
        if work is not self._training:
            raise ValueError(f"{error} (all of it in {record})")
        if self._config.reward.on_error == "fail":
            raise ValueError(f"{error} (all of it in {record}; reward.on_error=drop leaves such groups out)")
        work.drop(prompt_id, "reward_error")
        self._actors.say(f"group {prompt_id!r} is left out: {error} (all of it in {record})")
        self._reward_errors_in_a_row += 1
        if self._reward_errors_in_a_row == _MOST_REWARD_ERRORS:
            raise ValueError(
                f"reward.on_error=drop: the last {_MOST_REWARD_ERRORS} groups all had to be left out, most recently: "
                f"{error} (all of them in {record})"
            )

    def _issue_again_after(self, actor: str) -> None:
        lost = {prompt_id: work for work in self._workloads for prompt_id in work.ledger.lose_actor(actor)}
        reason = self._ended_generating.pop(actor, None)
        deaths = self._suspects.lost_with(list(lost), f"{actor}: {reason}") if lost and reason else []
        if deaths:
            ((prompt_id, work),) = lost.items()
            self._set_aside(work, work.prompts[prompt_id], deaths)

    def _set_aside(self, work: Workload, prompt: Prompt, deaths: Sequence[str]) -> None:
        folder = self._incidents.put_aside(prompt, deaths)
        what = (
            f"question {prompt.question.id!r} ended {len(deaths)} engines that generated nothing else, most recently "
            f"{deaths[-1]}; it is recorded in {folder}"
        )
        if work is not self._training:
            raise RuntimeError(f"{what}. Leave it out of the evaluation's data")
        work.drop(prompt.id, SET_ASIDE)
        self._actors.say(f"{what}, and is not asked any more")
        if self._suspects.proven_in_a_row == _MOST_SET_ASIDE:
            raise RuntimeError(
                f"{_MOST_SET_ASIDE} questions in a row ended their engines, and none was answered in between, so that "
                f"something else may be wrong. The last: {what}. To ask them again, remove {folder.parent}"
            )

    def _issue(self, prompt: Prompt) -> None:
        self._training.add(prompt)
        if self._incidents.passes_over(prompt):
            self._training.drop(prompt.id, SET_ASIDE)

    def _give_up_the_overdue(self) -> None:
        for work in self._workloads:
            for prompt_id, actor in work.ledger.overdue(self._actors.rollout_limit.seconds).items():
                self._ended_generating[actor] = f"{prompt_id!r} unfinished after {self._actors.rollout_limit}"
                self._actors.lose(actor, self._ended_generating[actor])
