"""`python -m medr1_ray.timeline RUN [--first STEP] [--last STEP]`: write a run's spans as a Chrome trace.

The whole run is `timeline.json`; some of its steps are `timeline-FIRST-LAST.json`.
"""

from __future__ import annotations

import sys

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.config import as_path
from medr1_ray.records.timeline import write_timeline


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python -m medr1_ray.timeline", description="Write a run's Chrome trace.")
    parser.add_argument("run", type=as_path, help="a run's directory")
    parser.add_argument("--first", type=int, help="first step of the trace")
    parser.add_argument("--last", type=int, help="last step of the trace")
    options = parser.parse_args(arguments)

    def work(ending: Ending) -> int:
        for name in ("first", "last"):
            if (step := getattr(options, name)) is not None and step < 0:
                raise ValueError(f"--{name} {step}: give a step of 0 or more")
        if None not in (options.first, options.last) and options.first > options.last:
            raise ValueError(f"--first {options.first} is after --last {options.last}; give the earlier step first")
        print(write_timeline(options.run, options.first, options.last))
        return 0

    return run_to_status(work)


if __name__ == "__main__":
    sys.exit(main())
