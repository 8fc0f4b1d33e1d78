"""Whatever happens in a command, it ends with a status and one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medr1_ray.base.command_line import Ending, run_to_status


def raising(error: BaseException) -> Callable[[Ending], int]:
    def work(ending: Ending) -> int:
        raise error

    return work


def test_the_status_is_that_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_status(lambda ending: 3) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a=1: use 2"), "a=1: use 2"),
        (RuntimeError("an actor died"), "an actor died"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (TimeoutError("too late"), "too late"),
    ],
)
def test_an_error_that_a_user_can_cause_is_its_message(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_to_status(raising(error)) == 1
    assert capsys.readouterr().err == f"error: {line}\n"


def traceback_of(said: str) -> str:
    path = Path(said.partition("(traceback: ")[2].rstrip(")\n"))
    text = path.read_text()
    path.unlink()
    return text


def test_a_bug_is_named_in_one_line_and_its_traceback_is_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_status(raising(TypeError("a bug\nof several lines"))) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: TypeError: a bug (traceback: ")
    assert said.count("\n") == 1
    assert "of several lines" in traceback_of(said)


def test_a_library_is_named_and_its_traceback_is_in_the_runs_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(ending: Ending) -> int:
        ending.logs = tmp_path
        return int(json.loads("{"))

    assert run_to_status(work) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: JSONDecodeError: Expecting property name")
    (file,) = tmp_path.iterdir()
    assert str(file) in said
    assert "Traceback" in traceback_of(said)


def test_a_failure_with_a_cause_keeps_the_causes_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def work(ending: Ending) -> int:
        raise RuntimeError("learner-0 died") from KeyError("deep")

    assert run_to_status(work) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: learner-0 died (traceback: ")
    assert "deep" in traceback_of(said)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_is_one_line_that_says_how_to_go_on(
    number: signal.Signals, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(ending: Ending) -> int:
        ending.how_to_go_on = lambda: "run it again"
        os.kill(os.getpid(), number)
        return 0

    before = signal.getsignal(number)
    assert run_to_status(work) == 128 + number
    assert capsys.readouterr().err == f"stopped by {name}: run it again\n"
    assert signal.getsignal(number) == before


def test_a_sigterm_while_ray_starts_counts_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_status(raising(SystemExit(signal.SIGTERM))) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_to_status(raising(SystemExit(2)))  # a wrong argument


def test_a_real_process_ends_so() -> None:
    script = (
        "import os, signal\nfrom medr1_ray.base.command_line import run_to_status\n"
        "raise SystemExit(run_to_status(lambda ending: os.kill(os.getpid(), signal.SIGINT) or 0))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C: nothing was written\n")


def test_a_path_that_a_library_could_not_use_is_named_and_the_traceback_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(ending: Ending) -> int:
        ending.logs = tmp_path
        shutil.copyfile(tmp_path / "absent", tmp_path / "copy")
        return 0

    assert run_to_status(work) == 1
    said = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert said == f"error: {tmp_path / 'absent'}: No such file or directory (traceback: {log})\n"
    assert "copyfile" in log.read_text()
