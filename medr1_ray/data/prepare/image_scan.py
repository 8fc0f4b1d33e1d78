"""Checks of many images in parallel processes, each image with a deadline and all with a progress bar; resumes where an
earlier run stopped."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from medr1_ray.base.atomic_files import whole_lines
from medr1_ray.base.deadline import within
from medr1_ray.base.signs_of_life import repeating
from medr1_ray.data.prepare.image_facts import ImageFacts, check_image, stamp

Check = Callable[[Sequence[str]], list[ImageFacts]]

_BATCH = 32
_IN_FLIGHT = 4
"""Batches per process: enough that no process waits, few enough that memory stays bounded."""

_MOST_LATE = 3
"""Images in a row that a process may give up; with one more the file system is taken to be gone."""


def facts_of_images(
    root: Path, paths: Sequence[str], record: Path, workers: int, seconds: float
) -> dict[str, ImageFacts]:
    """Return the facts about the images at `paths` (relative to `root`, without duplicates), by path.

    New facts are appended to `record` (JSON Lines) as they are found. Facts of usable images that are already recorded
    are reused unless `root`, or the file's size or modification time, is another; others are checked again. An image
    that crashes the process that reads it, or takes longer than `seconds`, is left out like any other unusable image.

    Raises:
        RuntimeError: several in a row take longer.
    """
    # The record may be about other data, prepared in the same folder before.
    of_root = str(root.absolute())
    known = {
        path: facts
        for path, facts in _read_record(record, of_root).items()
        if facts.left_out is None and (facts.bytes, facts.modified_ns) == stamp(root, path)
    }
    facts = {path: known[path] for path in paths if path in known}
    unknown = [path for path in paths if path not in known]
    bar = tqdm(
        total=len(paths),
        initial=len(facts),
        desc="images",
        unit="image",
        smoothing=0.02,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    with bar, repeating(bar.refresh), record.open("a", encoding="utf-8") as file:
        check = partial(each_in_time, partial(check_image, root), seconds)
        for found in run_checks(check, batches(unknown), workers):
            for one in found:
                facts[one.path] = one
                file.write(json.dumps({"root": of_root, **asdict(one)}) + "\n")
            file.flush()
            bar.update(len(found))
    return facts


def each_in_time(check: Callable[[str], ImageFacts], seconds: float, paths: Sequence[str]) -> list[ImageFacts]:
    """Check each image; one that takes longer than `seconds` is left out, since a read may never return.

    Raises:
        RuntimeError: several in a row take longer.
    """
    found: list[ImageFacts] = []
    in_a_row = 0
    for path in paths:
        try:
            found.append(within(seconds, "reading it", partial(check, path)))
            in_a_row = 0
        except TimeoutError as late:
            found.append(ImageFacts(path, 0, 0, left_out="image cannot be read in time", remark=str(late)))
            in_a_row += 1
        if in_a_row > _MOST_LATE:
            raise RuntimeError(
                f"{in_a_row} images in a row could not be read within {seconds:g} s each, the last: {path}; check the "
                "file system that holds them, or give a longer --image-timeout if it is only slow"
            )
    return found


def run_checks(check: Check, batches: Sequence[Sequence[str]], workers: int) -> Iterator[list[ImageFacts]]:
    """Run `check` on each batch in `workers` processes; yield the results in any order.

    If a process ends unexpectedly (a decoder that crashes, memory that runs out), the batches in flight are checked
    again one image at a time, and an image that crashes its process again is left out.
    """
    waiting = deque(batches)
    running: dict[Future[list[ImageFacts]], Sequence[str]] = {}
    # A single worker gets one batch at a time, so that a crash points at it: the second try below relies on that.
    in_flight = _IN_FLIGHT * workers if workers > 1 else 1
    while waiting:
        # A pool that has lost a process is unusable, hence a new one in each round.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupt) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < in_flight:
                        batch = waiting[0]  # removed after `submit`, which raises if the pool has just broken
                        running[pool.submit(check, batch)] = batch
                        waiting.popleft()
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield done.result()
                        del running[done]
                continue
            except RuntimeError as error:
                if not isinstance(error, BrokenProcessPool):
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                # The pool does not say whose process died, so all batches in flight are suspects.
                suspects = [path for batch in running.values() for path in batch]
                running.clear()
        if len(suspects) == 1:
            yield [ImageFacts(suspects[0], 0, 0, left_out="image ends the process that reads it")]
        else:
            yield from run_checks(check, [[path] for path in suspects], workers=1)


def batches(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the paths in batches of a size for `run_checks`."""
    return [tuple(paths[start : start + _BATCH]) for start in range(0, len(paths), _BATCH)]


def _ignore_interrupt() -> None:
    """Ignore Control-C in a worker: the parent handles it and lets the batches in flight finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_record(record: Path, root: str) -> dict[str, ImageFacts]:
    """Return the facts recorded earlier of images in `root`; torn lines and those of another version are ignored."""
    facts: dict[str, ImageFacts] = {}
    for line in whole_lines(record):
        try:
            fields = json.loads(line)
            of_root = fields.pop("root")
            one = ImageFacts(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if of_root == root:
            facts[one.path] = one
    return facts
