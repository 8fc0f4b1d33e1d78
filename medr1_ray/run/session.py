"""A running training: the loops of `train.py` and `sft.py` call one short method of it for each thing they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from medr1_ray.base.stopping import StopAskedError, break_off_if_asked, finishing
from medr1_ray.config import Config
from medr1_ray.config.loading import config_digest
from medr1_ray.data.stream import PromptStream
from medr1_ray.encoders.handle import RemoteEncoder
from medr1_ray.evaluation.blinding import NOT_SHUFFLED, EvaluationPrompts, NoLongerReadableError
from medr1_ray.evaluation.in_training import BEFORE_IS_GONE, EvaluationLog, evaluate
from medr1_ray.learner.handle import Learner
from medr1_ray.learner.messages import Gap, ImitationReport, UpdateReport
from medr1_ray.pool.actor_states import ActorCounts
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.scaling import Scaling
from medr1_ray.records.alarms import Alarms
from medr1_ray.records.busy_time import BusyTime, seconds_of
from medr1_ray.records.checkpoints import RunState
from medr1_ray.records.metrics import PhaseSeconds, Resources, imitation_metrics, reward_metrics, step_metrics
from medr1_ray.records.summary import Totals, summarise
from medr1_ray.records.terminal import Progress
from medr1_ray.records.tracker import Tracker
from medr1_ray.run.parity.gate import ParityGate, require_small_gap
from medr1_ray.run.phases import Phases
from medr1_ray.run.replay import Replay
from medr1_ray.run.saving import Saving
from medr1_ray.run.skipped_steps import SkippedSteps
from medr1_ray.run.weight_sync import WeightSync
from medr1_ray.types import CompletedPrompt, Group, Prompt, Span


@dataclass
class Session:
    """The parts of a running training, put together by `startup.started_session`.

    `step` is the number of optimizer steps done, and so the learner's policy version.
    """

    config: Config
    step: int
    learner: Learner
    pool: RolloutPool
    weights: WeightSync
    encoder: RemoteEncoder
    stream: PromptStream
    gate: ParityGate
    evaluation_prompts: EvaluationPrompts
    evaluations: EvaluationLog
    tracker: Tracker
    progress: Progress
    saving: Saving
    totals: Totals
    phases: Phases
    scaling: Scaling
    skipped_steps: SkippedSteps
    alarms: Alarms
    replay: Replay | None
    _busy: BusyTime = field(default_factory=BusyTime)
    _syncs: int = 0
    _followed: Gap = field(default_factory=Gap)

    def take_groups(self) -> list[Group]:
        """The groups of the next step; waits for rollout actors as long as one is left or may still come."""
        with self.phases.timed("rollout"):
            if self.replay is not None:
                return self.replay.take(self.step // self.config.train.steps_per_rollout + 1)
            return self.pool.take(self.step, self._while_waiting)

    def update(self, groups: list[Group]) -> UpdateReport:
        """Take the learner's optimizer steps on these groups, while the pool generates as far ahead as allowed."""
        versions = self.config.train.steps_per_rollout
        # Before the update, so that engines have work during it. With max_staleness 0 this issues nothing.
        self._issue_groups(versions_ahead=versions)
        self.saving.publish_if_written()
        with self.phases.timed("update"):
            self.weights.make_room()
            report = self.learner.update(groups, self.step, meanwhile=self.pool.poll)
        self.step += versions
        return report

    def record_rollouts(self) -> None:
        """Generate and record the groups of a step without learning from them: the policy stays that of the start."""
        with self.phases.timed("rollout"):
            groups = self.pool.take(version=0)
        # As a replay counts them.
        self.step += self.config.train.steps_per_rollout
        self.tracker.write_rollouts(self.step, groups)
        self.tracker.record_groups(self.step, groups)
        self.tracker.log_spans(self.step, self._take_spans(()))
        self.progress.update(self.step, reward_metrics(groups))

    def sync_weights(self) -> None:
        """Bring the learner's weights to every rollout actor that is up.

        At the start and after the first update the parity gate waits for all of them: the cheapest moments to find that
        something is wrong. Later it only follows, beside the generation of the next groups.
        """
        # In a run that was asked to stop, the step just taken is logged and saved, and nothing more is generated.
        with suppress(StopAskedError):
            break_off_if_asked()
            # The number of syncs says where the run is: 0 at the start, 1 after the first update.
            check = self._syncs < 2
            self._sync(check=check)
            # Before logging and saving, so that engines already generate the next groups while those run.
            self._issue_groups(versions_ahead=0)
            # A replay generates nothing, and is to be the same every time.
            if not check and self.replay is None:
                with self.phases.timed("parity"):
                    self._followed += self.gate.follow(self.step)

    def take_prompts(self) -> list[Prompt]:
        """The prompts of the next supervised step."""
        with self.phases.timed("data"):
            return self.stream.take(self.config.train.prompts_per_step)

    def imitate(self, demonstrations: Sequence[CompletedPrompt]) -> ImitationReport:
        """The learner's supervised step on these completions."""
        with self.phases.timed("update"):
            self.weights.make_room()
            report = self.learner.imitate(demonstrations, self.step, meanwhile=self.pool.poll)
        self.step = report.version
        return report

    def log_imitation(self, demonstrations: Sequence[CompletedPrompt], report: ImitationReport) -> None:
        """Record metrics and spans of the supervised step just taken."""
        self.totals.completions += len(demonstrations)
        spans = self._take_spans(report.spans)
        seconds = PhaseSeconds.of(spans)
        if self.skipped_steps.count(self.step, [report.step], self.progress.message):
            self.tracker.record_demonstrations(self.step, demonstrations)
        metrics = imitation_metrics(
            demonstrations, report, self.stream.state().dropped, self.skipped_steps.total, seconds
        )
        self.tracker.log(self.step, metrics)
        self.tracker.log_spans(self.step, spans)
        self.progress.update(self.step, metrics)
        self.skipped_steps.require_few()

    def sync_for_evaluation(self) -> None:
        """Bring the learner's weights to the rollout actors for an evaluation; the parity gate runs every time."""
        self._sync(check=True)

    def log_step(self, groups: list[Group], report: UpdateReport) -> None:
        """Record metrics, rollouts and spans of the step just taken.

        Raises:
            ParityError: the engines' log-probabilities of this step are further from the learner's than the limit.
            RuntimeError: too many steps in a row had a gradient that is not finite.
        """
        gap = Gap.of(report.statistics) + self._followed
        self._followed = Gap()
        self.totals.gap += gap
        self.totals.completions += sum(len(group.rewards.total) for group in groups)
        spans = self._take_spans(report.spans)
        seconds, busy = PhaseSeconds.of(spans), self._busy.add(spans)
        skipped = self.skipped_steps.count(self.step, report.steps, self.progress.message)
        metrics = step_metrics(
            groups,
            report,
            gap,
            self.pool.ledger.counts(),
            self._actor_counts(),
            self.stream.state().dropped,
            self.skipped_steps.total,
            seconds,
            busy,
            Resources.of(self.config, len(self.pool.rollout_names)),
        )
        for line in self.alarms.watch(metrics):
            self.progress.message(f"step {self.step}: {line}")
        self.tracker.log(self.step, {**metrics, "alarms/active": self.alarms.active})
        self.tracker.log_spans(self.step, spans)
        if skipped or self._due(self.config.run.rollouts_every):
            self.tracker.write_rollouts(self.step, groups)
        # Of a step that was skipped always: to find out why, it has to be done again.
        if skipped or self.config.run.record_groups:
            self.tracker.record_groups(self.step, groups)
        self.progress.update(self.step, metrics)
        lost = self.pool.actor_counts().lost
        self.scaling.measure(seconds.rollout, seconds.step - seconds.rollout, seconds_of(busy, "rollout-"), lost)
        # After logging, so that metrics and rollouts of the failed step are in the files.
        self.skipped_steps.require_few()
        require_small_gap(gap, self.config.gap_mean_limit, self.step)

    def scale_rollouts(self) -> None:
        """Adjust the number of rollout actors so that the learner stays busy, from the measured steps; does not
        wait."""
        actors = self.scaling.choose(self.pool.actor_counts().target)
        self.pool.scale(actors, f"the learner waited for {self.scaling.idle_fraction or 0.0:.0%} of the last steps")

    def evaluate_before(self) -> None:
        """Evaluate the start model in a new run; in a resumed one the model of the step that it goes on from, where a
        stop broke that evaluation off."""
        if self.evaluations.before() is None:
            if self.step:
                self.progress.message(f"evaluation before: left out: {BEFORE_IS_GONE}")
            else:
                self._evaluate("before", self.evaluation_prompts)
        if not 0 < self.step < self.config.train.steps:
            return
        made = self.evaluations.after_step(self.step)
        if made is None:
            self.evaluate_if_due()
        elif self.step not in self.tracker.accuracies:
            # Made after the checkpoint, so its line was moved aside.
            self.tracker.log_evaluation(self.step, made)

    def evaluation_is_due(self) -> bool:
        """Whether to evaluate after the step just taken; the last step is evaluated by `evaluate_after`."""
        return self._due(self.config.run.evaluate_every) and self.step < self.config.train.steps

    def evaluate_if_due(self) -> None:
        if self.evaluation_is_due():
            name = f"step-{self.step}"
            try:
                self._evaluate(name, self.evaluation_prompts)
            except NoLongerReadableError as error:
                self.progress.message(f"evaluation {name}: left out: {error}")

    def evaluate_after(self) -> None:
        """Evaluate the trained model: with the images, with blank ones, and, if possible, with other questions'."""
        prompts = self.evaluation_prompts
        self._evaluate("after", prompts)
        self._evaluate("blank_image", prompts.with_blank_images())
        shuffled = prompts.with_shuffled_images(self.config.data.seed)
        if shuffled is None:
            self.progress.message(f"evaluation shuffled_image: left out: {NOT_SHUFFLED}")
        else:
            self._evaluate("shuffled_image", shuffled)

    def save_if_due(self) -> None:
        """Begin a checkpoint where one is due, and publish one that has been written (`run/saving.py`)."""
        self.saving.if_due(self.step, self.step - self.config.train.steps_per_rollout, self._state)

    def save(self) -> Path:
        """Publish a checkpoint of this step, unless there is one; returns its path.

        Raises NotSavedError where it cannot be written; earlier ones are as they were.
        """
        return self.saving.save(self.step, self._state)

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Around the loop: Ctrl-C and SIGTERM end it after an update under way, with a checkpoint of the last step that
        is done. What else it waits for (groups, engines, an evaluation) is broken off. After an error the checkpoint
        that is being written is finished.

        Raises StopAskedError, a KeyboardInterrupt, once the checkpoint is there.
        """
        with finishing("an update under way"):
            try:
                yield
            except StopAskedError:
                self.progress.message(f"stopping after step {self.step}")
                self.saving.at_a_stop(self.step, self._state)
                self.tracker.log_spans(self.step, self._take_spans(()))
                raise
            except BaseException as error:
                self.saving.after_an_error(error)
                raise

    def stop_if_asked(self) -> None:
        """Raise StopAskedError where the run was asked to stop; everything of the last step is done."""
        break_off_if_asked()

    def summarise(self) -> Path:
        """Write `summary.json` and print its main figures; returns its path."""
        summary = summarise(
            self.config,
            self.step,
            self.evaluations,
            self.totals,
            self.skipped_steps.total,
            self.pool.ledger.counts(),
            self._actor_counts(),
        )
        # The last checkpoint and the last evaluations come after the last step.
        self.tracker.log_spans(self.step, self._take_spans(()))
        path = self.tracker.write_summary(summary)
        self.progress.close(summary)
        self.progress.message(f"metrics, evaluations and checkpoints are in {path.parent}")
        return path

    def _state(self) -> RunState:
        # Counts, stream position and unused prompts must be of the same moment (no poll in between); otherwise a
        # resumed run would skip or repeat questions.
        counts = self.pool.ledger.counts()
        return RunState(
            step=self.step,
            stream=self.stream.state(),
            unused_prompts=tuple(self.pool.unused_prompt_ids()),
            groups_used=counts.used,
            groups_zero_variance=counts.zero_variance,
            groups_dropped=counts.dropped,
            groups_reissued=counts.reissued,
            answers_late=counts.late,
            totals=replace(self.totals, actors=self._actor_counts().tally()),
            config_digest=config_digest(self.config),
            steps_skipped=self.skipped_steps.total,
            metric_lines=self.tracker.lines,
        )

    def _actor_counts(self) -> ActorCounts:
        # Of the whole run; the pool's own are those of this start.
        return self.pool.actor_counts().after(self.totals.actors)

    def _while_waiting(self, ready: Sequence[Group]) -> None:
        # A wait may take longer than the node has left, and what was used so far is of steps that are done.
        self.saving.before_a_node_leaves(self.step, self._state)
        self.saving.publish_if_written()
        self.learner.prefetch(ready)

    def _issue_groups(self, versions_ahead: int) -> None:
        if self.replay is None:
            self.pool.fill(versions_ahead)

    def _sync(self, *, check: bool) -> None:
        if not self._syncs:
            self.progress.message("first weight sync, then the parity gate: do engines and learner compute the same?")
        with self.phases.timed("weight_sync"):
            self.weights.sync(self.step)
        if check:
            with self.phases.timed("parity"):
                gap = self.gate.check(self.step)
            self.totals.gap += gap
            if not self._syncs:
                self.progress.message(
                    f"parity gate: they differ by {gap.mean:.1e} nats in the mean over {gap.tokens} tokens"
                )
        self._syncs += 1

    def _take_spans(self, of_learner: Sequence[Span]) -> list[Span]:
        """All spans since the last call, the learner's included."""
        return [*self.phases.drain(), *self.pool.drain_spans(), *of_learner]

    def _evaluate(self, name: str, prompts: Iterable[Prompt]) -> None:
        with self.phases.timed("evaluation"):
            evaluation, groups = evaluate(self.pool, prompts, self.config.rollout.max_tokens)
        self.evaluations.add(name, self.step, evaluation, groups)
        # The ablations are not points of the accuracy curve.
        if prompts is self.evaluation_prompts:
            self.tracker.log_evaluation(self.step, evaluation)
        self.progress.message(
            f"evaluation {name}: accuracy {evaluation.accuracy:.3f}, format {evaluation.format:.3f}, n {evaluation.n}"
        )

    def _due(self, every: int) -> bool:
        """Whether the last update reached or passed a multiple of `every`."""
        done_before = self.step - self.config.train.steps_per_rollout
        return every > 0 and self.step // every > done_before // every
