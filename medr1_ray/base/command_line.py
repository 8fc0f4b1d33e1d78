"""How every command ends: with an exit status and one line, whatever happens.

What a user can cause is a ValueError, RuntimeError or OSError of ours, whose message is the line. Any other error, ours
or a library's, is named in one line, and its traceback goes to a file.
"""

from __future__ import annotations

import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medr1_ray.base.stopping import asked_to_stop, heeding_signals

PACKAGE = __name__.partition(".")[0]
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_LONGEST = 500


@dataclass
class Ending:
    """What a command knows, as it goes, about being cut short.

    `how_to_go_on` returns what to do after Ctrl-C; `logs` is the folder for tracebacks, once it exists.
    """

    how_to_go_on: Callable[[], str] = lambda: "nothing was written"
    logs: Path | None = None


def run_to_status(work: Callable[[Ending], int]) -> int:
    """Run a command and return its exit status: that of `work`, 1 after an error, 130 or 143 after a signal."""
    ending = Ending()
    with heeding_signals():
        try:
            return work(ending)
        except KeyboardInterrupt:
            return _stopped(asked_to_stop() or signal.SIGINT, ending)
        except SystemExit as error:
            # Raised by Ray's own handler, which stands in for ours while Ray starts.
            if error.code == signal.SIGTERM:
                return _stopped(signal.SIGTERM, ending)
            raise
        except Exception as error:
            print(f"error: {_describe(error, ending)}", file=sys.stderr)
            return 1


def _stopped(by: signal.Signals, ending: Ending) -> int:
    name = "Ctrl-C" if by == signal.SIGINT else by.name
    print(f"stopped by {name}: {ending.how_to_go_on()}", file=sys.stderr)
    return 128 + by


def _describe(error: Exception, ending: Ending) -> str:
    ours = isinstance(error, ValueError | RuntimeError | OSError) and not _comes_from_a_library(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        # Most often a path that the user gave; what a library raises may be something else, which the traceback tells.
        named = f"{error.filename}: {error.strerror}"
        return named if ours else f"{named} (traceback: {_write_traceback(error, ending.logs)})"
    if ours and not (isinstance(error, RuntimeError) and error.__cause__):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["without a message"]
    cause = lines[0] if ours else f"{type(error).__name__}: {lines[0]}"
    return f"{cause[:_LONGEST]} (traceback: {_write_traceback(error, ending.logs)})"


def _comes_from_a_library(error: Exception) -> bool:
    """Whether the error was raised outside this package, in an installed one or in the standard library."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if str(frame.f_globals.get("__name__")).partition(".")[0] == PACKAGE:
        return False
    return frame.f_code.co_filename.startswith((*_LIBRARIES, "<frozen"))


def _write_traceback(error: Exception, folder: Path | None) -> Path:
    if folder is None or not folder.is_dir():
        folder = Path(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix=time.strftime("driver-%Y%m%d-%H%M%S-"), suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        file.writelines(traceback.format_exception(error))
    return Path(file.name)
