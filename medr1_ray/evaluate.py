"""`python -m medr1_ray.evaluate --model PATH --data DIR --split S`: compare a checkpoint with image-free baselines."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.config import as_path, expanded
from medr1_ray.evaluation.evaluate import Plan, evaluate, require_result
from medr1_ray.evaluation.passes import SCORINGS
from medr1_ray.evaluation.report_page import describe_against
from medr1_ray.evaluation.settings import describe_asking, evaluation_config
from medr1_ray.model.checkpoint_files import resolve_checkpoint
from medr1_ray.types import Mode

OFTEN_CHANGED = """\
settings that are changed most (by default those of the run that wrote the model):
  rollout.max_tokens=256          longest answer
  rollout.max_prompt_tokens=1024  longest question, its image included
  data.image_size=384             side of the images in pixels
  model.dtype=bfloat16            precision
  rollout.gpus_per_actor=1        a GPU for each engine; 0 computes on the CPU
  rollout.actors=2                engines

Ctrl-C keeps the answers so far; the same command goes on. What the numbers mean: docs/evaluation.md."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(
        prog="python -m medr1_ray.evaluate",
        description=__doc__.splitlines()[0],
        epilog=OFTEN_CHANGED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=expanded, required=True, help="a checkpoint folder, a run's folder, or `tiny`")
    parser.add_argument("--data", type=as_path, required=True, help="written by data.prepare, a table, or OmniMedVQA")
    parser.add_argument("--split", required=True, help="NAME or NAME/PART of prepared data, else a part")
    parser.add_argument("--mode", choices=get_args(Mode), help="default: that of the model's run, else no_think")
    parser.add_argument("--samples", type=int, default=0, help="answers sampled per question, for pass rates")
    parser.add_argument("--scoring", nargs="+", choices=SCORINGS, default=["letter"], help="letter is always included")
    parser.add_argument("--questions", type=int, help="at most this many, drawn in turn from each modality and type")
    parser.add_argument("--against", type=as_path, help="report.json or folder of another model on the same split")
    parser.add_argument("--out", type=as_path, help="default: runs/evaluations/MODEL/DATA-SPLIT-MODE")
    parser.add_argument("--config", type=as_path, action="append", help="YAML file; default: that of the model's run")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that override the files")
    options = parser.parse_intermixed_args(arguments)
    return run_to_status(lambda ending: _evaluate(options, ending))


def _evaluate(options: argparse.Namespace, ending: Ending) -> int:
    if options.samples < 0:
        raise ValueError(f"--samples {options.samples} is negative: give the samples per question, or 0 for none")
    if options.questions is not None and options.questions < 1:
        raise ValueError(f"--questions {options.questions}: give 1 or more, or leave it out to ask all")
    if options.against:
        require_result(options.against)
    checkpoint = resolve_checkpoint(options.model)
    config = evaluation_config(
        checkpoint,
        data=options.data,
        split=options.split,
        mode=options.mode,
        out=options.out,
        files=options.config or [],
        overrides=options.overrides,
    )
    ending.logs = config.run.dir / "logs"
    ending.how_to_go_on = lambda: f"the answers so far are in {config.run.dir}; the same command continues"
    print(describe_asking(config), file=sys.stderr)
    plan = Plan(options.split, tuple(options.scoring), options.samples, options.questions, options.against)
    report = evaluate(config, plan)
    print("\n".join(report.verdict))
    if report.against:
        print(describe_against(report.against))
    print(f"{config.run.dir}/report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
