"""Decoding of images in threads, each image with a deadline: a read from a file system that hangs never returns."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medr1_ray.config import DataSettings

Image = NDArray[np.uint8]

IMAGE_SECONDS: float = DataSettings.model_fields["image_timeout_seconds"].default

_THREADS = 4
MOST_HANGING = 8
"""Reads that may hang at the same time, each with a thread; with one more the file system is taken to be gone."""


@dataclass(eq=False)
class Decode:
    """One image under way: `started` is None until a thread has taken it up."""

    path: str
    result: Future[Image] = field(default_factory=Future)
    started: float | None = None


class Decoders:
    """A few threads that call `load` for images, first come, first served.

    An image that takes longer than `seconds` is given up: its thread is left to itself, and another takes its place.
    The threads are daemons, so that none of them keeps the process from ending.
    """

    def __init__(self, load: Callable[[str], Image], seconds: float, threads: int = _THREADS) -> None:
        self._load = load
        self._seconds = seconds
        self._waiting: queue.SimpleQueue[Decode] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: set[Decode] = set()
        self._hanging: set[Decode] = set()
        self._missing = threads  # started with the first image

    @property
    def hanging(self) -> int:
        """Number of reads that were given up and have not come back."""
        return len(self._hanging)

    def begin(self, path: str) -> Decode:
        """Start decoding; the result is waited for with `wait`."""
        decode = Decode(path)
        self._waiting.put(decode)
        with self._lock:
            self._start_threads()
        return decode

    def wait(self, decode: Decode) -> Image:
        """Return the decoded image.

        Raises:
            ValueError: whatever is wrong with the file, or its read took too long.
            RuntimeError: more reads hang than may be left to themselves.
        """
        while True:
            try:
                return decode.result.result(self._give_up_late_ones())
            except NotYet:
                # What `load` raised is no timeout of ours.
                if decode.result.done():
                    return decode.result.result()

    def _give_up_late_ones(self) -> float:
        """Give up images whose time is over; return the seconds until that may be so of another."""
        with self._lock:
            now = time.monotonic()
            ends = {one: one.started + self._seconds for one in self._running if one.started is not None}
            for late in [one for one, end in ends.items() if end <= now]:
                del ends[late]
                self._running.remove(late)
                self._hanging.add(late)
                self._missing += 1
                late.result.set_exception(
                    ValueError(f"{late.path}: could not be read within data.image_timeout_seconds={self._seconds:g}")
                )
            if len(self._hanging) > MOST_HANGING:
                raise RuntimeError(
                    f"{len(self._hanging)} images could not be read within data.image_timeout_seconds="
                    f"{self._seconds:g}, and reading them still hangs, e.g. {min(one.path for one in self._hanging)}; "
                    "check the file system that holds them, or raise data.image_timeout_seconds if it is only slow"
                )
            self._start_threads()
            return min(ends.values(), default=now + self._seconds) - now

    def _start_threads(self) -> None:
        for _ in range(self._missing):
            threading.Thread(target=self._work, daemon=True, name="images").start()
        self._missing = 0

    def _work(self) -> None:
        while True:
            decode = self._waiting.get()
            with self._lock:
                decode.started = time.monotonic()
                self._running.add(decode)
            image: Image | None = None
            error: BaseException | None = None
            try:
                image = self._load(decode.path)
            except BaseException as raised:  # for whoever waits, as an executor does
                error = raised
            with self._lock:
                if decode in self._hanging:
                    # It has come back after all; another thread works in place of this one.
                    self._hanging.remove(decode)
                    return
                self._running.remove(decode)
                if error is not None:
                    decode.result.set_exception(error)
                else:
                    assert image is not None
                    decode.result.set_result(image)
