"""Shared parts of the benchmark commands: options, interleaved timing, machine load and the printed results.

A benchmark is a command, `python -m benchmarks.<name> [--quick] [--json]`. The two sides of a comparison take turns
within one process tree (B A, A B, B A, ...), so that both see the same machine, and their medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status

LOAD_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """The machine's load at one moment: the one-minute load average, and the busy fraction of all cores."""

    load_average: float
    busy_fraction: float

    @classmethod
    def now(cls) -> Load:
        """Sample for half a second; the caller must be idle during that time, or it measures itself."""
        before = _processor_ticks()
        time.sleep(LOAD_SAMPLE_SECONDS)
        busy, total = (after - start for after, start in zip(_processor_ticks(), before, strict=True))
        return cls(round(os.getloadavg()[0], 2), round(busy / max(1, total), 2))


@dataclass(frozen=True)
class Result:
    """One comparison.

    `ratio` is how many times better ours is (above 1: ours is better). `of_limit` is the fraction of a bare limit that
    ours reaches; None where there is no such limit.
    """

    name: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    of_limit: float | None
    settings: Mapping[str, Any]


def median_seconds(seconds: list[float]) -> float:
    return statistics.median(seconds)


def interleaved(sides: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Run all sides once per round, in alternating order; return each side's values without the warm-up rounds."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            value = sides[name]()
            if number >= warm_up:
                found[name].append(value)
    return found


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a side for `interleaved` that runs `work` and returns its wall-clock seconds."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def command(
    description: str | None,
    benchmark: Callable[[argparse.Namespace], list[Result]],
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Run a benchmark as a command: parse the options, measure, print. Return the exit status.

    With `--json` the last line of stdout is one JSON object: the first result's fields, `load`, and all results under
    `results`.
    """
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds: under three minutes")
    if options:
        options(parser)
    arguments = parser.parse_args()
    return run_to_status(lambda ending: _measure(benchmark, arguments, ending))


def _measure(
    benchmark: Callable[[argparse.Namespace], list[Result]], arguments: argparse.Namespace, ending: Ending
) -> int:
    # All sides inherit it; our learner sets the same. OpenMP threads that spin on busy cores would make a side look
    # many times slower than it is.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    before = Load.now()
    ending.how_to_go_on = lambda: "nothing is kept of what was measured"
    results = benchmark(arguments)
    load = {"before": asdict(before), "after": asdict(Load.now())}
    for result in results:
        limit = "" if result.of_limit is None else f", {result.of_limit:.2f} of the limit"
        print(
            f"{result.name}: ours {result.ours:.4g}, theirs {result.theirs:.4g} {result.unit}; "
            f"ratio {result.ratio:.2f}{limit}"
        )
    print(f"load before {before}, after {load['after']}")
    if arguments.json:
        rows = [asdict(result) for result in results]
        print(json.dumps({**rows[0], "load": load, "results": rows}))
    return 0


def progress(text: str) -> None:
    """Print a progress line to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def _processor_ticks() -> tuple[int, int]:
    """Return the busy and the total clock ticks of all cores since boot (Linux)."""
    with open("/proc/stat") as file:
        user, nice, system, idle, waiting, *rest = map(int, file.readline().split()[1:])
    busy = user + nice + system + sum(rest[:3])
    return busy, busy + idle + waiting
