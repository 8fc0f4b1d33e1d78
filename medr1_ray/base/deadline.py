"""Deadlines for calls that would wait for ever: collectives wait for all members of a group, dead ones too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ended_by(seconds: float, what: str, end: Callable[[], None]) -> Iterator[None]:
    """Call `end` from another thread when the body takes longer, which must make the body return or raise.

    Raises TimeoutError in that case, whatever the body did then.
    """
    late = threading.Event()

    def on_deadline() -> None:
        late.set()
        end()

    timer = threading.Timer(seconds, on_deadline)
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
    """The result of `call`, which runs in a thread of its own: one that cannot be ended is left behind.

    Raises TimeoutError, or what `call` raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _timeout(what, seconds)
    return results[0]


def _timeout(what: str, seconds: float) -> TimeoutError:
    return TimeoutError(f"{what} did not end within {seconds:g} seconds")
