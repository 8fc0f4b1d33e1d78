"""The command line shared by `python -m medr1_ray.train` and `python -m medr1_ray.sft`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

from medr1_ray.base.command_line import Ending, run_to_status
from medr1_ray.config import Config, Objective
from medr1_ray.config.loading import load_config
from medr1_ray.model.folder_check import check_model
from medr1_ray.rewards.functions import resolve
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
    # Intermixed, so that overrides may stand before, between and after the options.
    options = parser.parse_intermixed_args(arguments)
    return run_to_status(lambda ending: _run(objective, run, options, ending))


def _run(objective: Objective, run: Run, options: argparse.Namespace, ending: Ending) -> int:
    # A GRPO config also serves the supervised baseline, on the same data. Not the other way round: the settings of
    # the baseline (its learning rate, for one) would silently ruin a policy.
    supervised = ["objective=sft"] if objective == "sft" else []
    config = load_config(options.config, [*options.overrides, *supervised])
    if config.objective != objective:
        raise ValueError(
            f"objective={config.objective}: these settings are for python -m {COMMANDS[config.objective]}; "
            f"run that, or give objective={objective}"
        )
    ending.logs = config.run.dir / "logs"
    # A wrong name of a reward function is a wrong setting, also for --dry-run.
    resolve(config.reward.functions, config.mode)
    # A dry run of a model that is not here yet needs its shape alone.
    if not options.dry_run or config.model.shape is None or config.model.folder.exists():
        check_model(config)
    if options.dry_run:
        print(dry_run(config))
    else:
        run(config, resume=options.resume)
    return 0
