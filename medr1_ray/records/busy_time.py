"""How long each actor was at work, from the spans of its phases."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from medr1_ray.types import Span

_OUTSIDE_THE_LOOP = ("evaluation", "checkpoint")


class BusyTime:
    """Seconds in which an actor had at least one phase running, each second counted once.

    A phase that runs over several steps (asynchronous generation) counts in the step in which it ended. Time inside the
    driver's evaluations and checkpoints does not count, since it is not part of a step.
    """

    def __init__(self) -> None:
        self._counted_until: dict[str, float] = {}

    def add(self, spans: Iterable[Span]) -> dict[str, float]:
        """Busy seconds by actor name that these spans add to those seen before; the driver is left out."""
        ordered = sorted(spans, key=lambda span: span.start_seconds)
        outside = [span for span in ordered if span.actor == "driver" and span.phase in _OUTSIDE_THE_LOOP]
        busy: dict[str, float] = defaultdict(float)
        for span in ordered:
            # An actor's spans overlap, because it serves many requests at once; what has been counted is cut off.
            start = max(span.start_seconds, self._counted_until.get(span.actor, -math.inf))
            if span.actor == "driver" or span.end_seconds <= start:
                continue
            pauses = sum(_overlap(pause, start, span.end_seconds) for pause in outside)
            busy[span.actor] += span.end_seconds - start - pauses
            self._counted_until[span.actor] = span.end_seconds
        return dict(busy)


def seconds_of(busy: Mapping[str, float], role: str) -> float:
    """Busy seconds of all actors whose names begin so."""
    return sum(seconds for actor, seconds in busy.items() if actor.startswith(role))


def _overlap(span: Span, start: float, end: float) -> float:
    return max(0.0, min(span.end_seconds, end) - max(span.start_seconds, start))
