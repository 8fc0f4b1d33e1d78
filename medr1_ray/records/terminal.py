"""Progress of a run in the terminal: one line that is updated in place, or a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

_WINDOW = 20


class Progress:
    """Shows reward, accuracy and tokens/s (in a supervised run loss and completions/s), and the remaining time.

    Args:
        steps: optimizer steps of the run.
        stream: the output; standard output by default.
        every_seconds: how often to print a line where `stream` is not a terminal (as in the log of `ray job submit`);
            the first and the last step always get one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        steps: int,
        stream: TextIO | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = steps
        self._stream = stream or sys.stdout
        self._every_seconds = every_seconds
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._last_print: float | None = None
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=steps,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {desc}",
            )

    def update(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the state after `step`; `metrics` are named as in `metric_names.METRICS`."""
        now = self._clock()
        self._recent.append((now, step))
        text = self._describe(step, metrics)
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(text)
        elif self._last_print is None or step == self._steps or now - self._last_print >= self._every_seconds:
            self._last_print = now
            self._print(f"step {step}/{self._steps}  {text}")

    def message(self, text: str) -> None:
        """Print a line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """End the line, and print the main figures of the summary if there is one."""
        if self._bar is not None:
            self._bar.close()
        if summary is not None:
            self._print(describe_summary(summary))

    def _describe(self, step: int, metrics: Mapping[str, float | None]) -> str:
        supervised = "reward/total_mean" not in metrics
        shown = (
            ("loss {:.3f}", metrics.get("loss/total") if supervised else None),
            ("reward {:.2f}", metrics.get("reward/total_mean")),
            ("accuracy {:.2f}", metrics.get("reward/accuracy_mean")),
            ("{:.0f} completions/s", metrics.get("perf/completions_per_second") if supervised else None),
            ("{:.0f} tokens/s", metrics.get("perf/rollout_tokens_per_second")),
        )
        parts = [form.format(value) for form, value in shown if value is not None]
        return "  ".join([*parts, f"ETA {self._eta(step)}"])

    def _eta(self, step: int) -> str:
        (first_time, first_step), (last_time, last_step) = self._recent[0], self._recent[-1]
        if last_step == first_step:
            return "?"
        seconds = round((last_time - first_time) / (last_step - first_step) * (self._steps - step))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def describe_summary(summary: Mapping[str, Any]) -> str:
    """`summary.json` in three lines for a person."""
    evaluation, seconds = summary["eval"], summary["seconds"]
    after = evaluation["after"]
    before = {
        name: "unknown" if evaluation["before"] is None else f"{evaluation['before'][name]:.3f}"
        for name in ("accuracy", "format")
    }
    shuffled = "left out" if evaluation["shuffled_image"] is None else f"{evaluation['shuffled_image']:.3f}"
    phases = ", ".join(
        f"{phase.replace('_', ' ')} {seconds[phase]:.0f}"
        for phase in ("rollout", "update", "weight_sync", "evaluation")
    )
    return "\n".join(
        [
            f"accuracy {before['accuracy']} before, {after['accuracy']:.3f} after {summary['steps']} steps "
            f"({after['n']} held-out questions; format {before['format']}, {after['format']:.3f})",
            f"image ablation: blank image {evaluation['blank_image']:.3f}, another question's image {shuffled}",
            f"{summary['completions_per_second']:.1f} completions/s; {seconds['total']:.0f} s ({phases}); "
            f"log-probability gap of engine and learner {summary['logprob_gap_mean']:.1e} nats, "
            f"at most {summary['logprob_gap_max']:.1e}",
        ]
    )
