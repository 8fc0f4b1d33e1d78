"""Signals end a command at once, except while it finishes a piece of work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from medr1_ray.base.stopping import (
    StopAskedError,
    ask_to_stop,
    asked_to_stop,
    break_off_if_asked,
    finishing,
    heeding_signals,
    who_asked,
)


def test_a_signal_ends_at_once() -> None:
    with heeding_signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked_to_stop() == signal.SIGTERM
    assert asked_to_stop() is None


def test_the_first_signal_only_asks_while_something_is_finished(capfd: pytest.CaptureFixture[str]) -> None:
    with heeding_signals(), finishing("this step"):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked_to_stop() == signal.SIGINT
        assert "stopping after this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_wait_is_broken_off_once_a_stop_was_asked_for() -> None:
    with heeding_signals(), finishing("this step"):
        break_off_if_asked()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopAskedError):
            break_off_if_asked()
    break_off_if_asked()


def test_others_ask_as_sigterm_does_and_once(capfd: pytest.CaptureFixture[str]) -> None:
    with heeding_signals(), finishing("this step"):
        thread = threading.Thread(target=lambda: [ask_to_stop("Ray"), ask_to_stop("Ray")])
        thread.start()
        thread.join()
        assert asked_to_stop() == signal.SIGTERM
        assert who_asked() == "Ray"
    assert "stopping as asked by Ray: after this step; once more to stop at once" in capfd.readouterr().err
    assert who_asked() == ""


def test_nobody_is_stopped_outside_of_a_command() -> None:
    ask_to_stop("Ray")
    assert asked_to_stop() is None


def test_after_the_work_a_signal_ends_at_once_again() -> None:
    with heeding_signals():
        with finishing("this step"):
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_cleaning_up_ends_the_process() -> None:
    script = """
import os, signal, time
from medr1_ray.base.stopping import heeding_signals
with heeding_signals():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        print("still here")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_another_thread_may_run_a_command() -> None:
    found: list[object] = []

    def work() -> None:
        with heeding_signals():
            found.append(asked_to_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
