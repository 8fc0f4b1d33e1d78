"""Long work is not silent, short work is."""

from __future__ import annotations

import re
import threading
import time

import pytest

from medr1_ray.base import signs_of_life
from medr1_ray.base.signs_of_life import repeating, still


def test_long_work_says_so_until_it_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs_of_life, "EVERY_SECONDS", 0.01)
    threads = threading.active_count()
    said, deadline = "", time.monotonic() + 60
    with pytest.raises(KeyError), still("reading the table"):  # noqa: PT012
        while "\n" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
        raise KeyError
    assert threading.active_count() == threads
    lines = (said + capsys.readouterr().err).splitlines()
    assert lines
    assert all(re.fullmatch(r"still reading the table, for \d+ s now", line) for line in lines)


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with still("reading the table"):
        pass
    assert capsys.readouterr().err == ""


def test_anything_can_be_repeated() -> None:
    shown = threading.Event()
    with repeating(shown.set, every_seconds=0.01):
        assert shown.wait(60)
