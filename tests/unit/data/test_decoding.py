"""Images are decoded in threads; a read that hangs is given up, and no number of them stops the others."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from medr1_ray.data.decoding import MOST_HANGING, Decoders, Image

IMAGE = np.zeros((2, 2, 3), np.uint8)


class Disk:
    """Reads of paths that begin with `hung` wait until `back` is set."""

    def __init__(self) -> None:
        self.back = threading.Event()

    def read(self, path: str) -> Image:
        if path.startswith("broken"):
            raise ValueError(f"{path}: broken")
        if path.startswith("hung"):
            self.back.wait()
        return IMAGE


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.back.set()


def test_what_load_returns_or_raises_is_the_result(disk: Disk) -> None:
    decoders = Decoders(disk.read, seconds=60, threads=1)
    broken, sound = decoders.begin("broken.png"), decoders.begin("a.png")
    assert decoders.wait(sound) is IMAGE
    with pytest.raises(ValueError, match=r"broken\.png: broken"):
        decoders.wait(broken)


def test_a_timeout_that_load_raises_is_an_error_like_others() -> None:
    def load(path: str) -> Image:
        raise TimeoutError("of the file system")

    decoders = Decoders(load, seconds=60, threads=1)
    with pytest.raises(TimeoutError, match="of the file system"):
        decoders.wait(decoders.begin("a.png"))


def test_a_read_that_hangs_is_given_up_and_the_next_images_are_decoded(disk: Disk) -> None:
    decoders = Decoders(disk.read, seconds=1.0, threads=2)  # time enough for those that do not hang
    under_way = [decoders.begin(path) for path in ("hung1.png", "hung2.png", "hung3.png", "a.png")]
    assert decoders.wait(under_way[3]) is IMAGE, "both threads hang, and then another"
    for hung in under_way[:3]:
        with pytest.raises(ValueError, match=r"hung\d\.png: could not be read within data\.image_timeout_seconds="):
            decoders.wait(hung)


def test_a_file_system_that_is_gone_ends_the_run_by_name(disk: Disk) -> None:
    decoders = Decoders(disk.read, seconds=0.02, threads=3)
    under_way = [decoders.begin(f"hung{number}.png") for number in range(MOST_HANGING + 1)]
    with pytest.raises(RuntimeError, match=r"still hangs, e\.g\. hung0\.png; check the file system that holds them"):  # noqa: PT012
        for hung in reversed(under_way):  # the last need not be given up last: threads take turns as they like
            with suppress(ValueError):
                decoders.wait(hung)


def test_reads_that_come_back_late_do_not_count(disk: Disk) -> None:
    decoders = Decoders(disk.read, seconds=0.02, threads=1)
    for _ in range(MOST_HANGING + 2):
        with pytest.raises(ValueError, match="could not be read within"):
            decoders.wait(decoders.begin("hung.png"))
        disk.back.set()
        while decoders.hanging:
            pass
        disk.back.clear()
    decoders._seconds = 60
    assert decoders.wait(decoders.begin("a.png")) is IMAGE


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending() -> None:
    program = """
import threading
from medr1_ray.data.decoding import Decoders
started = threading.Event()
def load(path):
    started.set()
    threading.Event().wait()
Decoders(load, seconds=60).begin("hung.png")
started.wait()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
