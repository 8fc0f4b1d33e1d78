"""`python -m medr1_ray.sft --config FILE… [key.sub=value …] [--dry-run] [--resume]`: the supervised baseline.

The same data, prompts, learner, run directory and evaluation as in `train.py`, and the same order of questions for a
seed. The model imitates the texts of `data/prompt_templates.py` (TARGETS) instead of being rewarded. The loss is the
mean over all completion tokens of the batch. Rollout actors only evaluate. Both commands accept its checkpoints as
`model.path`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medr1_ray.config import Config
from medr1_ray.run.command import run_command
from medr1_ray.run.opening import open_session

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import SharedActors


def sft(config: Config, *, resume: bool = False, engines: SharedActors | None = None) -> Path:
    """Run a supervised training to its end; returns the path of its `summary.json`. `engines` that are lent to it stay
    up.

    Raises:
        ValueError: a setting, the data or the run directory is not usable; nothing has been trained.
        RuntimeError: an actor failed or exceeded its deadline, or engine and learner disagree (`ParityError`). The run
            can be resumed from its last checkpoint.
        KeyboardInterrupt: Ctrl-C, SIGTERM, or a notice for the driver's node; in the loop the run is saved first.
    """
    from medr1_ray.data.demonstrations import Teacher

    with open_session(config, resume=resume, engines=engines) as session:
        teacher = Teacher.from_checkpoint(str(config.model.folder), config.mode, config.rollout.max_tokens)
        session.sync_for_evaluation()
        session.evaluate_before()
        with session.saved_when_stopped():
            while session.step < config.train.steps:
                demonstrations = teacher.demonstrate(session.take_prompts(), session.encoder.visual_tokens)
                report = session.imitate(demonstrations)
                session.log_imitation(demonstrations, report)
                if session.evaluation_is_due():
                    session.sync_for_evaluation()
                    session.evaluate_if_due()
                session.save_if_due()
                session.stop_if_asked()
            session.save()
        session.sync_for_evaluation()
        session.evaluate_after()
        return session.summarise()


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("sft", "The supervised baseline, on a Ray cluster.", sft, arguments)


if __name__ == "__main__":
    sys.exit(main())
