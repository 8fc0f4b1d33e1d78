"""Alarms: what a person should be told of a running training, by rules over the means of its last steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from medr1_ray.config import AlarmSettings


@dataclass(frozen=True)
class _Rule:
    """An alarm while the metric's mean over the window is beyond the limit; `below` says on which side."""

    metric: str
    key: str
    limit: float | None
    below: bool
    meaning: str


class Alarms:
    """Watches the metrics of each step.

    Args:
        settings: the limits; one of None switches its alarm off.
        gap_mean_limit: nats at which the parity gate ends the run (`Config.gap_mean_limit`).
    """

    def __init__(self, settings: AlarmSettings, gap_mean_limit: float) -> None:
        gap = None if settings.gap_fraction is None else settings.gap_fraction * gap_mean_limit
        self._rules = (
            _Rule(
                "policy/logprob_gap_mean",
                "gap_fraction",
                gap,
                False,
                f"engines and learner drift apart; the run ends at {gap_mean_limit:g}",
            ),
            _Rule(
                "policy/entropy",
                "entropy_below",
                settings.entropy_below,
                True,
                "the policy hardly explores any more; a KL (loss.kl_beta) or a higher rollout.temperature keeps it up",
            ),
            _Rule(
                "reward/format_mean",
                "format_below",
                settings.format_below,
                True,
                "many completions are not in the format that is asked for; look at rollouts/",
            ),
            _Rule(
                "reward/zero_variance_fraction",
                "zero_variance_above",
                settings.zero_variance_above,
                False,
                "most groups teach nothing; use harder questions, train.dynamic_sampling, or stop",
            ),
            _Rule(
                "completion/truncated_fraction",
                "truncated_above",
                settings.truncated_above,
                False,
                "many completions are cut off; raise rollout.max_tokens",
            ),
        )
        self._recent: dict[str, deque[float]] = {rule.metric: deque(maxlen=settings.window) for rule in self._rules}
        self._window = settings.window
        self._raised: set[str] = set()

    @property
    def active(self) -> int:
        """How many alarms stand."""
        return len(self._raised)

    def watch(self, metrics: Mapping[str, float | None]) -> list[str]:
        """Take the metrics of a step; returns a line for each alarm that this step raises, or ends."""
        lines = []
        for rule in self._rules:
            value, recent = metrics.get(rule.metric), self._recent[rule.metric]
            if value is not None:
                recent.append(value)
            # Before the window is full a single step would decide.
            if rule.limit is None or len(recent) < self._window:
                continue
            mean = sum(recent) / len(recent)
            # A NaN is beyond every limit.
            beyond = not (mean >= rule.limit if rule.below else mean <= rule.limit)
            if beyond == (rule.metric in self._raised):
                continue
            what = f"{rule.metric} is {mean:.3g} over the last {self._window} steps (alarms.{rule.key}: {rule.limit:g})"
            if beyond:
                self._raised.add(rule.metric)
                lines.append(f"ALARM: {what}: {rule.meaning}")
            else:
                self._raised.remove(rule.metric)
                lines.append(f"alarm over: {what}")
        return lines
