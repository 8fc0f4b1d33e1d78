"""How every command ends: with an exit status and one line, whatever happens.

What a user can cause is a ValueError, RuntimeError or OSError of ours, whose message is the line. Any other error, ours
or a library's, is named in one line, and its traceback goes to a file.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from medr1_ray.base.stopping import asked_to_stop, heeding_signals, who_asked

PACKAGE = __name__.partition(".")[0]
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_LONGEST = 500
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNREAD = 128 + signal.SIGPIPE


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with our ending: an error is its usage and a line that says what to do."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}; `{self.prog} --help` lists what can be given\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stderr.write(message or "")
        sys.exit(_with_all_written(status))


def _nothing_was_written() -> str:
    return "nothing was written"


@dataclass
class Ending:
    """What a command knows, as it goes, about being cut short.

    `how_to_go_on` returns what to do after Ctrl-C; `logs` is the folder for tracebacks, once it exists.
    """

    how_to_go_on: Callable[[], str] = _nothing_was_written
    logs: Path | None = None


def run_to_status(work: Callable[[Ending], int]) -> int:
    """Run a command and return its exit status: that of `work`, 1 after an error, 130 or 143 after a signal.

    It is 141, as of a process that SIGPIPE ends, if nobody reads the output any more: `... | head`.
    """
    ending = Ending()
    with heeding_signals():
        try:
            return _with_all_written(work(ending))
        except KeyboardInterrupt:
            return _stopped(asked_to_stop() or signal.SIGINT, ending)
        except SystemExit as error:
            # Raised by Ray's own handler, which stands in for ours while Ray starts.
            if error.code == signal.SIGTERM:
                return _stopped(signal.SIGTERM, ending)
            raise
        except Exception as error:
            # Pipes to other processes break too.
            if isinstance(error, BrokenPipeError) and (closed := _redirect_closed_pipes()):
                if ending.how_to_go_on is not _nothing_was_written and sys.stderr not in closed:
                    print(f"stopped, as nobody reads the output: {ending.how_to_go_on()}", file=sys.stderr)
                return _UNREAD
            print(f"error: {_describe(error, ending)}", file=sys.stderr)
            return _with_all_written(1)


def _with_all_written(status: int) -> int:
    """Write what is still in the buffer; return `status`, or that of an output which cannot be written any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _redirect_closed_pipes()
        return _UNREAD
    except OSError as error:
        print(f"error: the output cannot be written ({error.strerror}); send it elsewhere", file=sys.stderr)
        _redirect_to_nowhere(sys.stdout)
        return 1
    return status


def _redirect_closed_pipes() -> list[TextIO]:
    """Redirect our output to nowhere where it is a pipe that nobody reads; return the streams that are."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream)]
    for stream in closed:
        _redirect_to_nowhere(stream)
    return closed


def _redirect_to_nowhere(stream: TextIO) -> None:
    """Keep the interpreter from a traceback when it flushes the stream at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_closed_pipe(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream, 0)
    except (OSError, ValueError):  # a stream of a test, say, that has no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _stopped(by: signal.Signals, ending: Ending) -> int:
    name = who_asked() or ("Ctrl-C" if by == signal.SIGINT else by.name)
    print(f"stopped by {name}: {ending.how_to_go_on()}", file=sys.stderr)
    return 128 + by


def _describe(error: Exception, ending: Ending) -> str:
    ours = isinstance(error, ValueError | RuntimeError | OSError) and not _comes_from_a_library(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        where = error.filename or "a file"
        return f"{where}: {error.strerror}; make room there, or choose another place, and run it again"
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
