"""Ctrl-C, SIGTERM and whoever else asks a command to end: at once, or after the piece of work that it must not cut.

Signals raise KeyboardInterrupt in the main thread, because that is the one exception that Ray lets out of its waiting
calls. The first signal inside `finishing` only asks; waits that can be broken off look whether somebody has
(`break_off_if_asked`). The second ends the command. One more, while it cleans up, ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAskedError(KeyboardInterrupt):
    """A wait was broken off, because this process was asked to stop."""


@dataclass
class _State:
    heeding: bool = False
    asked: signal.Signals | None = None
    by: str = ""
    finishing: str = ""
    ending: bool = False


# Of the process, as signals are.
_state = _State()


def asked_to_stop() -> signal.Signals | None:
    """Return the signal that asked this process to stop, or None."""
    return _state.asked


def who_asked() -> str:
    """Return what `ask_to_stop` was given; empty where a signal came from outside."""
    return _state.by


def ask_to_stop(by: str) -> None:
    """Do as if SIGTERM had come, from any thread; `by` says who asks. Does nothing where somebody has asked before, or
    no command heeds signals."""
    main = threading.main_thread().ident
    if _state.heeding and _state.asked is None and main is not None:
        _state.by = by
        # To that thread, so that it wakes from whatever it waits for.
        signal.pthread_kill(main, signal.SIGTERM)


def break_off_if_asked() -> None:
    """Raise StopAskedError where this process was asked to stop: called by waits that leave nothing half done."""
    if _state.asked is not None:
        raise StopAskedError


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt in the body; a no-op outside of the main thread."""
    try:
        before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    except ValueError:  # another thread, which no signal reaches
        yield
        return
    _state.heeding = True
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.heeding, _state.asked, _state.by, _state.finishing, _state.ending = False, None, "", "", False


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """Let the first signal in the body only ask to stop; `what` says what is finished first, e.g. `this update`."""
    _state.finishing = what
    try:
        yield
    finally:
        _state.finishing = ""


def _on_signal(number: int, frame: FrameType | None) -> None:
    first = _state.asked is None
    if _state.ending:
        os._exit(128 + number)
    _state.asked = signal.Signals(number)
    if first and _state.finishing:
        # Not by print: the signal may have come in the middle of one, and streams cannot be entered twice.
        asked = f" as asked by {_state.by}:" if _state.by else ""
        os.write(2, f"\nstopping{asked} after {_state.finishing}; once more to stop at once\n".encode())
        return
    _state.ending = True
    raise KeyboardInterrupt
