"""`python -m medr1_ray.tiny --out DIR --seed S`: build the tiny Qwen2-VL from a seed."""

from __future__ import annotations

import argparse
import sys

from medr1_ray.base.command_line import ArgumentParser, run_to_status
from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import LARGEST_SEED, as_path, require_lasting


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and build the model; return the exit status."""
    parser = ArgumentParser(prog="python -m medr1_ray.tiny", description=__doc__)
    parser.add_argument(
        "--out", type=as_path, required=True, help="folder for model/, state.pt and build_log.txt"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument(
        "--steps", type=int, help="optimizer steps; fewer than the default give a weaker model"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads; the shipped model was built with 1"
    )
    options = parser.parse_args(arguments)
    return run_to_status(lambda ending: _build(options))


def _build(arguments: argparse.Namespace) -> int:
    for name in ("steps", "threads"):
        if (given := getattr(arguments, name)) is not None and given < 1:
            raise ValueError(f"--{name} {given}: give 1 or more")
    if not 0 <= arguments.seed <= LARGEST_SEED:
        raise ValueError(f"--seed {arguments.seed}: give 0 or more, at most {LARGEST_SEED}")
    require_lasting("--out", arguments.out)
    require_writable(f"--out {arguments.out}", arguments.out)
    # After what can be wrong with the arguments, because of what it imports.
    from medr1_ray.tiny.build import build

    build(arguments.out, arguments.seed, arguments.steps, arguments.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
