"""A run from its first actor to its last: what `train.py`'s loop calls, one short method for each thing it does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medr1_ray.checkpoint import Checkpoints, RunState
from medr1_ray.config import Config
from medr1_ray.config_loading import config_digest
from medr1_ray.data.stream import PromptStream
from medr1_ray.evaluation import EvaluationLog, evaluate, with_blank_images, with_shuffled_images
from medr1_ray.learner import Learner
from medr1_ray.metrics import step_metrics
from medr1_ray.parity import Gap, ParityError, ParityGate
from medr1_ray.pool import RolloutPool
from medr1_ray.progress import Progress
from medr1_ray.summary import Totals, summarise
from medr1_ray.tracking import Tracker
from medr1_ray.types import Group, Prompt, Span, UpdateReport


@dataclass
class Session:
    """The parts of a running training, put together by `startup.open_session`.

    `step` is the number of optimizer steps done, and so the learner's policy version.
    """

    config: Config
    step: int
    learner: Learner
    pool: RolloutPool
    stream: PromptStream
    gate: ParityGate
    evaluation_prompts: Sequence[Prompt]
    evaluations: EvaluationLog
    tracker: Tracker
    progress: Progress
    checkpoints: Checkpoints
    totals: Totals
    _syncs: int = 0
    _spans: list[Span] = field(default_factory=list)

    def take_groups(self) -> list[Group]:
        """The groups of the next step: waits for the rollout actors."""
        with self._phase("rollout"):
            return self.pool.take(self.step, self.learner.offer)

    def update(self, groups: list[Group]) -> UpdateReport:
        """The learner's optimizer steps on these groups, while the pool generates as far ahead as it may."""
        versions = self.config.train.updates_per_rollout
        self.pool.fill(versions_ahead=versions)
        with self._phase("update"):
            report = self.learner.update(groups, self.step)
        self.step += versions
        return report

    def sync_weights(self) -> None:
        """Bring the learner's weights to every rollout actor and check their parity where rollouts do not show it.

        Synchronous rollouts are of the learner's own version, so that every update measures the gap; the gate runs at
        the start and after the first update. Asynchronous rollouts mix versions: the gate runs after every sync.
        """
        with self._phase("weight_sync"):
            self.pool.load_weights(self.learner.export_weights(self.step))
        if self._syncs < 2 or self.config.train.max_staleness > 0:
            with self._phase("parity"):
                self.totals.gap += self.gate.check(self.step)
        self._syncs += 1
        self.pool.fill(versions_ahead=0)

    def log_step(self, groups: list[Group], report: UpdateReport) -> None:
        """Metrics, rollouts and spans of the step that has just been done.

        Raises:
            ParityError: the engines' log-probabilities of this step are further from the learner's than the limit.
        """
        gap = Gap.of(report.statistics)
        self.totals.gap += gap
        self.totals.completions += sum(len(group.rewards.total) for group in groups)
        spans = [*self._spans, *self.pool.drain_spans(), *report.spans]
        self._spans.clear()
        metrics = step_metrics(groups, report, self.pool.ledger.counts(), self.stream.state().dropped, spans)
        self.tracker.log(self.step, metrics)
        self.tracker.log_spans(self.step, spans)
        if self._due(self.config.run.rollouts_every):
            self.tracker.write_rollouts(self.step, groups)
        self.progress.update(self.step, metrics)
        if gap.mean > self.config.gap_mean_limit:
            raise ParityError(
                f"step {self.step}: the rollout log-probabilities are {gap.mean:.2e} nats from the learner's in the "
                f"mean, over {gap.tokens} tokens of the same policy version; the limit is "
                f"{self.config.gap_mean_limit:g} (parity.gap_mean_limit)"
            )

    def evaluate_before(self) -> None:
        """Evaluate the start model, unless this run has done so before it was interrupted."""
        if self.evaluations.find("before") is None:
            self._evaluate("before", self.evaluation_prompts)

    def evaluate_if_due(self) -> None:
        if self._due(self.config.run.evaluate_every) and self.step < self.config.train.steps:
            self._evaluate(f"step-{self.step}", self.evaluation_prompts)

    def evaluate_after(self) -> None:
        """Evaluate the trained model: as it is, with blank images, and with other questions' images."""
        prompts = self.evaluation_prompts
        self._evaluate("after", prompts)
        self._evaluate("blank_image", with_blank_images(prompts))
        self._evaluate("shuffled_image", with_shuffled_images(prompts, self.config.data.seed))

    def save_if_due(self) -> None:
        if self._due(self.config.run.save_every):
            self.save()

    def save(self) -> Path:
        """Publish a checkpoint of this step."""
        with self._phase("checkpoint"):
            counts = self.pool.ledger.counts()
            state = RunState(
                step=self.step,
                stream=self.stream.state(),
                unused_prompts=tuple(self.pool.unused_prompt_ids()),
                groups_used=counts.used,
                groups_zero_variance=counts.zero_variance,
                groups_dropped=counts.dropped,
                completions=self.totals.completions,
                seconds=self.totals.seconds,
                config_digest=config_digest(self.config),
            )
            return self.checkpoints.publish(state, self.learner.save)

    def summarise(self) -> Path:
        """Write `summary.json` and say on the terminal what came of the run."""
        summary = summarise(self.config, self.step, self.evaluations, self.totals, self.pool.ledger.counts())
        path = self.tracker.write_summary(summary)
        self.progress.close(summary)
        return path

    def _evaluate(self, name: str, prompts: Sequence[Prompt]) -> None:
        with self._phase("evaluation"):
            evaluation, groups = evaluate(self.pool, prompts, self.config.rollout.max_tokens)
        self.evaluations.add(name, self.step, evaluation, groups)
        if prompts is self.evaluation_prompts:
            self.tracker.log(
                self.step, {"eval/accuracy": evaluation.accuracy, "eval/format": evaluation.format}
            )
        self.progress.message(
            f"evaluation {name}: accuracy {evaluation.accuracy:.3f}, format {evaluation.format:.3f}, n {evaluation.n}"
        )

    def _due(self, every: int) -> bool:
        """Whether a step that is a multiple of `every` was passed by the last update."""
        done_before = self.step - self.config.train.updates_per_rollout
        return every > 0 and self.step // every > done_before // every

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.time()
        yield
        span = Span("driver", name, start, time.time())
        self._spans.append(span)
        self.totals.seconds[name] = self.totals.seconds.get(name, 0.0) + span.seconds
