"""What the driver does when: a span for each phase, and the seconds of each in the whole run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from medr1_ray.types import Span


class Phases:
    """Times the driver's phases; they may be nested.

    Args:
        seconds: by phase, of the run so far; it is added to.
        spans: of before.
    """

    def __init__(self, seconds: dict[str, float], spans: Iterable[Span] = ()) -> None:
        self._seconds = seconds
        self._spans = list(spans)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Around what the phase `name` is; a body that raises is not counted."""
        start = time.time()
        yield
        span = Span("driver", name, start, time.time())
        self._spans.append(span)
        self._seconds[name] = self._seconds.get(name, 0.0) + span.seconds

    def drain(self) -> list[Span]:
        """The spans since the last call."""
        spans, self._spans = self._spans, []
        return spans
