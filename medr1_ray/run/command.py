"""What `python -m medr1_ray.train` and `python -m medr1_ray.sft` have in common as commands."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Protocol

from medr1_ray.config import Config, Objective
from medr1_ray.config.loading import load_config
from medr1_ray.sizing.report import dry_run


class Run(Protocol):
    """Runs a training to its end; returns the path of its `summary.json`."""

    def __call__(self, config: Config, *, resume: bool) -> Path: ...


COMMANDS: dict[Objective, str] = {"grpo": "medr1_ray.train", "sft": "medr1_ray.sft"}


def run_command(objective: Objective, description: str, run: Run, arguments: list[str] | None) -> int:
    """Read the arguments and run; returns the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {COMMANDS[objective]}", description=description)
    parser.add_argument("--config", type=Path, action="append", required=True, help="YAML; later files win")
    parser.add_argument("--dry-run", action="store_true", help="print settings, actors and memory; start nothing")
    parser.add_argument("--resume", action="store_true", help="continue from the run's latest checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that win over the files")
    options = parser.parse_intermixed_args(arguments)
    try:
        # A config for reinforcement serves as one for the supervised baseline on equal data; not the other way round,
        # where the settings of the baseline (its learning rate, say) would ruin a policy without a word.
        supervised = ["objective=sft"] if objective == "sft" else []
        config = load_config(options.config, [*options.overrides, *supervised])
        if config.objective != objective:
            raise ValueError(
                f"objective={config.objective}: these settings are for python -m {COMMANDS[config.objective]}; "
                f"run that, or give objective={objective}"
            )
        if options.dry_run:
            print(dry_run(config))
        else:
            run(config, resume=options.resume)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
