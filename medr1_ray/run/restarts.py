"""A run whose learner loses a rank goes on by itself from its last checkpoint.

The ranks of a DeepSpeed learner cannot be replaced one by one: each holds a part of the optimizer that no other has,
and the process group has a fixed size. So the attempt ends as after any other error, and a new one starts as `--resume`
would: actors are placed anew, and prompts that were issued after the checkpoint are issued again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from medr1_ray.base.stopping import asked_to_stop
from medr1_ray.cluster.resources import NotStartedError
from medr1_ray.config import Config
from medr1_ray.learner.messages import LearnerLostError
from medr1_ray.records.checkpoints import has_checkpoint, latest_checkpoint


class Run(Protocol):
    """Runs a training to its end; returns the path of its `summary.json`."""

    def __call__(self, config: Config, *, resume: bool) -> Path: ...


def run_with_restarts(run: Run, config: Config, *, resume: bool) -> Path:
    """Run a training, at most `run.max_restarts` times again without a new checkpoint in between.

    A rank that is killed is a loss, also while it starts. A start that fails for a reason of its own, or takes too
    long, is an error at first (a setting may be wrong), and another loss once the run has been up. Raises what `run`
    raises, and LearnerLostError when there have been too many restarts.
    """
    checkpoints = config.run.dir / "checkpoints"
    losses, lost_after = 0, ""
    while True:
        try:
            return run(config, resume=resume)
        except (LearnerLostError, NotStartedError) as error:
            if asked_to_stop():
                print(f"LOST: {error}. The run was asked to stop and does not start again", flush=True)
                raise KeyboardInterrupt from error
            if isinstance(error, NotStartedError) and not lost_after:
                raise
            resume = has_checkpoint(checkpoints)
            saved = latest_checkpoint(checkpoints).name if resume else "the start"
            losses = losses + 1 if saved == lost_after else 1
            lost_after = saved
            if losses > config.run.max_restarts:
                raise LearnerLostError(
                    f"{error}; the run was lost after {saved} for the {_times(losses)} time in a row "
                    f"(run.max_restarts={config.run.max_restarts})"
                ) from error
            print(
                f"LOST: {error}. The run goes on from {saved} with new actors (restart {losses} of "
                f"run.max_restarts={config.run.max_restarts} without progress)",
                flush=True,
            )


def _times(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
