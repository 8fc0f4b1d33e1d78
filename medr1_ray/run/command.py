"""The command line shared by `python -m medr1_ray.train` and `python -m medr1_ray.sft`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.base.json_files import read_mapping
from medr1_ray.config import Config, Objective, as_path, shown_text
from medr1_ray.config.loading import load_config
from medr1_ray.model.folder.check import check_model
from medr1_ray.records.checkpoints import has_checkpoint, latest_checkpoint, read_state
from medr1_ray.records.directory import check_run_directory
from medr1_ray.run.restarts import Run, run_with_restarts
from medr1_ray.run.start_checks import problems_of_a_start
from medr1_ray.run.storage.fetch import bring_newest, would_bring
from medr1_ray.run.storage.uploads import upload_again
from medr1_ray.sizing.report import dry_run

COMMANDS: dict[Objective, str] = {"grpo": "medr1_ray.train", "sft": "medr1_ray.sft"}


OFTEN_CHANGED = """\
settings that are changed most:
  run.dir=FOLDER                  where to write; one folder per run
  run.save_every=50               steps between checkpoints, besides those every run.save_minutes=15
  run.resume=auto                 go on where there is a checkpoint, else start
  run.storage=s3://bucket/path    keep checkpoints there too, for a machine that is lost
  run.evaluate_every=50           steps between evaluations (0: before and after)
  model.path=FOLDER               the checkpoint to start from, or `tiny`
  data.format= data.root=         what the data are, and their folder
  mode=think                      or no_think, think_after: what the model is asked to write
  train.steps=1000                optimizer steps
  train.prompts_per_step=32       questions of a step
  train.group_size=8              answers to each question
  rollout.max_tokens=256          longest answer
  rollout.actors=2                vLLM engines
  learner.learning_rate=1e-6
  reward.functions={accuracy: 1, format: 1}

Ctrl-C saves a checkpoint and ends; --resume goes on. --dry-run prints every setting with its value. What each means:
docs/training.md, docs/data.md, docs/models.md and the files of medr1_ray/config/. What a run leaves: docs/runs.md."""


def run_command(
    objective: Objective, description: str, run: Run, arguments: list[str] | None, rollout_only: Run | None = None
) -> int:
    """Read the arguments and run; returns the exit status. `rollout_only` is what that option runs, where there is
    one."""
    parser = ArgumentParser(
        prog=f"python -m {COMMANDS[objective]}",
        description=description,
        epilog=OFTEN_CHANGED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=as_path, action="append", required=True, help="YAML; later files win")
    parser.add_argument("--dry-run", action="store_true", help="print settings, actors and memory, and check a start")
    parser.add_argument("--resume", action="store_true", help="continue from the run's latest checkpoint")
    if rollout_only:
        parser.add_argument("--rollout-only", action="store_true", help="generate and record groups, learn nothing")
        parser.add_argument("--replay", type=as_path, metavar="DIR", help="learn from groups of run.record_groups")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that win over the files")
    # Intermixed, so that overrides may stand before, between and after the options.
    options = parser.parse_intermixed_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments

    def work(ending: Ending) -> int:
        if rollout_only and options.rollout_only and options.replay:
            raise ValueError(
                f"--rollout-only generates groups, and --replay {options.replay} learns from those that were: give one "
                "of the two"
            )
        config = _settings(objective, options)
        may_go_on = options.resume or config.run.resume == "auto"
        if may_go_on and not options.dry_run:
            bring_newest(config, _say)
        resume = options.resume or (may_go_on and has_checkpoint(config.run.dir / "checkpoints"))
        if options.dry_run:
            return _dry_run(config, resume=resume, may_go_on=may_go_on)
        ending.logs = config.run.dir / "logs"
        ending.how_to_go_on = lambda: _how_to_go_on(config, COMMANDS[objective], given)
        finished = _finished(config) if resume else None
        if rollout_only and options.rollout_only:
            print(f"the groups are in {rollout_only(config, resume=resume)}")
        elif finished:
            upload_again(config, _say)
            print(finished)
        else:
            run_with_restarts(run, config, resume=resume)
        return 0

    return run_to_status(work)


def _settings(objective: Objective, options: argparse.Namespace) -> Config:
    # A GRPO config also serves the supervised baseline, on the same data. Not the other way round: the settings of
    # the baseline (its learning rate, for one) would silently ruin a policy.
    supervised = ["objective=sft"] if objective == "sft" else []
    replay = [f"run.replay={json.dumps(str(options.replay))}"] if getattr(options, "replay", None) else []
    config = load_config(options.config, [*options.overrides, *replay, *supervised])
    if config.objective != objective:
        raise ValueError(
            f"objective={config.objective}: these settings are for python -m {COMMANDS[config.objective]}; "
            f"run that, or give objective={objective}"
        )
    return config


def _say(line: str) -> None:
    print(line, flush=True)


def _dry_run(config: Config, *, resume: bool, may_go_on: bool) -> int:
    # A report needs the model; one that is not here yet needs its shape alone.
    if config.model.shape is None or config.model.folder.exists():
        check_model(config)
    print(dry_run(config))
    # After the report, which is of use even where data and model are on another machine.
    if brings := would_bring(config) if may_go_on else None:
        print(f"a start would first bring {brings} from {config.run.storage}; settings are compared with it then")
        resume = has_checkpoint(config.run.dir / "checkpoints")
    problems = problems_of_a_start(config, resume=resume, brings=bool(brings))
    for problem in problems:
        print(f"error: a start would fail: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _finished(config: Config) -> str | None:
    """Return what to say of a run that has nothing left to do; None if there is something."""
    directory = check_run_directory(config, resume=True)
    try:
        step = read_state(latest_checkpoint(directory.checkpoints)).step
    except ValueError:
        return None  # damaged; the start looks for a whole one
    summary = directory.path / "summary.json"
    if step < config.train.steps or _steps_of(summary) != step:
        return None  # the last evaluations are missing, also where the run had ended before and goes on with more steps
    return f"nothing left to do: {step} of train.steps={config.train.steps} steps are done, see {summary}"


def _steps_of(summary: Path) -> object:
    try:
        return read_mapping(summary, "").get("steps")
    except (OSError, ValueError):
        return None  # damaged, or not there: made anew


def _how_to_go_on(config: Config, module: str, given: Sequence[str]) -> str:
    try:
        checkpoint = latest_checkpoint(config.run.dir / "checkpoints")
    except ValueError:
        return "nothing was saved; the same command starts again"
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    again = [str(python), "-m", module, *(shown_text(word) for word in given if word != "--resume"), "--resume"]
    return f"{checkpoint} is saved; go on with\n  {shlex.join(again)}"
