"""Ctrl-C and SIGTERM: they end a command at once, or after the piece of work that it must not cut.

Both raise KeyboardInterrupt in the main thread, because that is the one exception that Ray lets out of its waiting
calls. The first signal inside `finishing` only asks; the second ends the command. One more, while it cleans up, ends
the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _State:
    asked: signal.Signals | None = None
    finishing: str = ""
    ending: bool = False


# Of the process, as signals are.
_state = _State()


def asked_to_stop() -> signal.Signals | None:
    """Return the signal that asked this process to stop, or None."""
    return _state.asked


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt in the body; a no-op outside of the main thread."""
    try:
        before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    except ValueError:  # another thread, which no signal reaches
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.asked, _state.finishing, _state.ending = None, "", False


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """Let the first signal in the body only ask to stop; `what` says what is finished first, e.g. `this step`."""
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
        os.write(2, f"\nstopping after {_state.finishing}; once more to stop at once\n".encode())
        return
    _state.ending = True
    raise KeyboardInterrupt
