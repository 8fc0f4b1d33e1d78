"""What the benchmarks share: the command's options, interleaved timing, the machine's load, and the result's line.

Every benchmark is a command, `python benchmarks/<name>.py [--quick] [--json]`. Two sides that are compared run in
turns within one process tree (A B, B A, A B, ...), so that both see the same machine, and their medians are compared.
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

LOAD_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """What the machine does at one moment: its one-minute load average, and the fraction of its cores that is busy."""

    load_average: float
    busy_fraction: float

    @classmethod
    def now(cls) -> Load:
        """Samples for half a second, while this process must be idle."""
        before = _processor_ticks()
        time.sleep(LOAD_SAMPLE_SECONDS)
        busy, total = (after - start for after, start in zip(_processor_ticks(), before, strict=True))
        return cls(round(os.getloadavg()[0], 2), round(busy / max(1, total), 2))


@dataclass(frozen=True)
class Result:
    """One comparison. `ratio` says how much better ours is (above 1: ours), `of_limit` which part of a bare limit it
    reaches, where there is one."""

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
    """Run all sides in turns, each time in the opposite order; what each returned, warm-up left out."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            value = sides[name]()
            if number >= warm_up:
                found[name].append(value)
    return found


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """`work` as a side of `interleaved`: its wall-clock seconds."""

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
    """A benchmark as a command: parse, measure, print. Returns the exit status.

    With `--json` the last line is one object: the first result's fields, `load`, and all results under `results`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds: under three minutes")
    if options:
        options(parser)
    arguments = parser.parse_args()
    # For all sides, as our learner's: threads that spin on busy cores make a side look many times slower than it is.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    before = Load.now()
    try:
        results = benchmark(arguments)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
    """A line for whoever watches; on stderr, since stdout has the results."""
    print(text, file=sys.stderr, flush=True)


def _processor_ticks() -> tuple[int, int]:
    """Busy and all ticks of all cores since the machine started (Linux)."""
    with open("/proc/stat") as file:
        user, nice, system, idle, waiting, *rest = map(int, file.readline().split()[1:])
    busy = user + nice + system + sum(rest[:3])
    return busy, busy + idle + waiting
