"""`python -m medr1_ray.sft --config FILE… [key.sub=value …] [--dry-run] [--resume]`: the supervised baseline.

The same data, prompts, learner, run directory and evaluation as in `train.py`, and the same order of questions for a
seed; what the model imitates instead of being rewarded is in `prompts.TARGETS`. The loss is on the completion alone,
the mean over all its tokens in the batch. Rollout actors only evaluate. Its checkpoints are a `model.path` for either
command.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medr1_ray.config import Config
from medr1_ray.run.command import run_command

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import Engines


def sft(config: Config, *, resume: bool = False, engines: Engines | None = None) -> Path:
    """Run a supervised training to its end; returns the path of its `summary.json`. `engines` lent to it go on.

    Raises:
        ValueError: a setting, the data or the run directory is not usable; nothing has been trained.
        RuntimeError: an actor failed or passed its deadline, or engine and learner disagree (`ParityError`). The last
            checkpoint can be resumed.
    """
    from medr1_ray.data.demonstrations import Teacher
    from medr1_ray.run.startup import open_session

    teacher = Teacher.from_checkpoint(str(config.model.folder), config.mode, config.rollout.max_tokens)
    with open_session(config, resume=resume, engines=engines) as session:
        session.show_weights()
        session.evaluate_before()
        while session.step < config.train.steps:
            demonstrations = teacher.demonstrate(session.take_prompts(), session.encoder.visual_tokens)
            report = session.imitate(demonstrations)
            session.log_imitation(demonstrations, report)
            if session.evaluation_is_due():
                session.show_weights()
                session.evaluate_if_due()
            session.save_if_due()
        session.show_weights()
        session.save()
        session.evaluate_after()
        return session.summarise()


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("sft", "The supervised baseline, on a Ray cluster.", sft, arguments)


if __name__ == "__main__":
    sys.exit(main())
