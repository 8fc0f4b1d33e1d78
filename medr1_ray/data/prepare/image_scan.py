"""Checking many images: in processes side by side, with a progress bar, going on where an earlier try was stopped."""

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

from medr1_ray.data.prepare.image_facts import ImageFacts, check_images, stamp

Check = Callable[[Sequence[str]], list[ImageFacts]]

_BATCH = 32
_IN_FLIGHT = 4
"""Batches for each process: enough that none waits, few enough that memory stays bounded."""


def facts_of_images(root: Path, paths: Sequence[str], record: Path, workers: int) -> dict[str, ImageFacts]:
    """The facts of the images at `paths` (relative to `root`, none twice), by path.

    They are appended to `record` (JSON Lines) as they are found. What it holds of usable images is taken from there,
    unless the file's size or time has changed since; the others are looked at again. An image that ends
    the process which reads it is left out like another.
    """
    known = {
        path: facts
        for path, facts in _read_record(record).items()
        if facts.left_out is None and (facts.bytes, facts.modified_ns) == stamp(root, path)
    }
    facts = {path: known[path] for path in paths if path in known}
    unknown = [path for path in paths if path not in known]
    with (
        record.open("a", encoding="utf-8") as file,
        tqdm(
            total=len(paths),
            initial=len(facts),
            desc="images",
            unit="image",
            smoothing=0.02,
            mininterval=0.1 if sys.stderr.isatty() else 10,
        ) as bar,
    ):
        for found in run_checks(partial(check_images, root), _batches(unknown), workers):
            for one in found:
                facts[one.path] = one
                file.write(json.dumps(asdict(one)) + "\n")
            file.flush()
            bar.update(len(found))
    return facts


def run_checks(check: Check, batches: Sequence[Sequence[str]], workers: int) -> Iterator[list[ImageFacts]]:
    """Run `check` on each batch in `workers` processes; the results come in any order.

    Where a process ends unexpectedly (a decoder that crashes, memory that runs out), what was in flight is checked
    again one image at a time, and the image that does it once more is left out.
    """
    waiting = deque(batches)
    running: dict[Future[list[ImageFacts]], Sequence[str]] = {}
    in_flight = _IN_FLIGHT * workers if workers > 1 else 1
    while waiting:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupt) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < in_flight:
                        batch = waiting[0]  # still waiting, should the pool break just now
                        running[pool.submit(check, batch)] = batch
                        waiting.popleft()
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield done.result()
                        del running[done]
                continue
            except BrokenProcessPool:
                suspects = [path for batch in running.values() for path in batch]
                running.clear()
        if len(suspects) == 1:
            yield [ImageFacts(suspects[0], 0, 0, left_out="image ends the process that reads it")]
        else:
            yield from run_checks(check, [[path] for path in suspects], workers=1)


def _batches(paths: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(paths[start : start + _BATCH]) for start in range(0, len(paths), _BATCH)]


def _ignore_interrupt() -> None:
    """Control-C is for the parent, which lets the batches in flight end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_record(record: Path) -> dict[str, ImageFacts]:
    """The facts written before; a line that is cut off, or of another version, is as if it were not there."""
    facts: dict[str, ImageFacts] = {}
    if record.exists():
        for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                one = ImageFacts(**json.loads(line))
            except (ValueError, TypeError):
                continue
            facts[one.path] = one
    return facts
