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

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status


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
        (
            OSError(28, "No space left on device", "/x"),
            "/x: No space left on device; make room there, or choose another place, and run it again",
        ),
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


def in_a_shell(command: str) -> tuple[int, str]:
    """Run a command of bash with what it prints cut off by a closed pipe; return its status, and the errors."""
    script = f"{command} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", ["medr1_ray", "medr1_ray train --help", "medr1_ray.timeline --help"])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(arguments: str) -> None:
    # The sleep lets `true` end first.
    status, said = in_a_shell(f"(sleep 0.2; exec {sys.executable} -m {arguments})")
    # argparse ignores a pipe that breaks while it prints, as it does with PYTHONUNBUFFERED.
    assert (status in (0, 141), said) == (True, "")


def test_a_pipe_that_nobody_reads_is_told_from_one_to_another_process(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(
        "import os, sys\nfrom medr1_ray.base.command_line import Ending, run_to_status\n"
        "def work(ending: Ending) -> int:\n"
        "    ending.how_to_go_on = lambda: 'run it again'\n"
        "    if sys.argv[1] == 'long':\n        print('x' * 100_000)\n"
        "    reader, writer = os.pipe()\n    os.close(reader)\n    return os.write(writer, b'x')\n"
        "raise SystemExit(run_to_status(work))\n"
    )
    status, said = in_a_shell(f"(sleep 0.2; exec {sys.executable} {script} long)")
    assert (status, said) == (141, "stopped, as nobody reads the output: run it again\n")
    done = subprocess.run([sys.executable, script, "short"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: [Errno 32] Broken pipe")
    both = f"(sleep 0.2; exec {sys.executable} {script} long) 2>&1"
    assert in_a_shell(both) == (141, "")


def test_a_wrong_argument_says_where_the_right_ones_are(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="python -m this")
    parser.add_argument("--steps", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--setps", "3"])
    assert ended.value.code == 2
    usage, line = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: python -m this")
    assert line == "error: unrecognized arguments: --setps 3; `python -m this --help` lists what can be given"


@pytest.mark.parametrize("arguments", ["medr1_ray", "medr1_ray.timeline --help"])
def test_an_output_that_cannot_be_written_is_one_line(arguments: str) -> None:
    words = [sys.executable, "-m", *arguments.split()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device); send it elsewhere\n"
