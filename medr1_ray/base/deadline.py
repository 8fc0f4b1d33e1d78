"""Deadlines for calls that may block indefinitely, such as collectives that wait for a dead member of the group."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_LONGEST_MARGIN_SECONDS = 5.0
_LOOK_SECONDS = 0.5


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
def ended_by(
    seconds: float, what: str, end: Callable[[], None], broken_off: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Run the body; after `seconds`, or once `broken_off` says so, call `end` from another thread, which must make the
    body return or raise.

    Raises TimeoutError or RuntimeError once that has happened, even if the body then returned or raised something else.
    """
    lock, done = threading.Lock(), threading.Event()
    reasons: list[Exception] = []

    def watch() -> None:
        last = time.monotonic() + seconds
        while not done.wait(min(_LOOK_SECONDS, max(0.0, last - time.monotonic()))):
            if time.monotonic() >= last:
                reason: Exception = _timeout(what, seconds)
            elif broken_off():
                reason = RuntimeError(f"{what} was broken off")
            else:
                continue
            with lock:
                # The body may have returned while `broken_off` looked; `end` would then end the next call.
                if done.is_set():
                    return
                reasons.append(reason)
            end()
            return

    # A daemon, so that a watch that hangs does not keep the process alive.
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        with lock:
            done.set()
        if reasons:
            raise reasons[0] from error
        raise
    finally:
        with lock:
            done.set()
    if reasons:
        raise reasons[0]


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Return the result of `call`, run in a thread of its own; after a timeout that thread is abandoned.

    Raises TimeoutError, or whatever `call` raised.
    """
    return while_moving(seconds, what, lambda moved: call())


def while_moving(seconds: float, what: str, call: Callable[[Callable[..., None]], T]) -> T:
    """As `within`, but for a call of any length: the seconds begin anew each time that it calls what it is given,
    which takes and ignores any arguments.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    last = time.monotonic()

    def moved(*_: object, **__: object) -> None:
        nonlocal last
        last = time.monotonic()

    def run() -> None:
        try:
            results.append(call(moved))
        # BaseException too: nothing else would carry it out of this thread.
        except BaseException as error:
            errors.append(error)

    # A daemon, so that an abandoned call does not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and (left := last + seconds - time.monotonic()) > 0:
        thread.join(left)
    if errors:
        raise errors[0]
    if not results:
        raise _timeout(what, seconds)
    return results[0]


def _timeout(what: str, seconds: float) -> TimeoutError:
    return TimeoutError(f"{what} timed out after {seconds:g} s")
