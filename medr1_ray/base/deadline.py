"""Deadlines for calls that may block indefinitely, such as collectives that wait for a dead member of the group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_LONGEST_MARGIN_SECONDS = 5.0


@dataclass(frozen=True)
class Limit:
    """How long a call may take, and the setting that says so."""

    seconds: float
    key: str

    def __str__(self) -> str:
        return f"{self.key}={self.seconds:g}"


def inside(seconds: float, depth: int = 1) -> float:
    """The limit of a call that is made inside one of `seconds`: shorter, so that the inner call ends first and the
    outer one hears why. `depth` is how far inside: an engine's call is at 2, inside its actor's, inside the driver's.
    """
    return seconds - depth * min(seconds / 10, _LONGEST_MARGIN_SECONDS)


@contextmanager
def ended_by(seconds: float, what: str, end: Callable[[], None]) -> Iterator[None]:
    """Run the body; after `seconds`, call `end` from another thread, which must make the body return or raise.

    Raises TimeoutError once the deadline has passed, even if the body then returned or raised something else.
    """
    late = threading.Event()

    def on_deadline() -> None:
        late.set()  # before `end`, which may let the body finish at once
        end()

    timer = threading.Timer(seconds, on_deadline)
    # A timer that is still waiting must not keep the process alive.
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise _timeout(what, seconds) from error
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise _timeout(what, seconds)


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Return the result of `call`, run in a thread of its own; after a timeout that thread is abandoned.

    Raises TimeoutError, or whatever `call` raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        # BaseException too: nothing else would carry it out of this thread.
        except BaseException as error:
            errors.append(error)

    # A daemon, so that an abandoned call does not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _timeout(what, seconds)
    return results[0]


def _timeout(what: str, seconds: float) -> TimeoutError:
    return TimeoutError(f"{what} timed out after {seconds:g} s")
