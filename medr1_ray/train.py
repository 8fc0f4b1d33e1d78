"""`python -m medr1_ray.train --config FILE… [key.sub=value …] [--dry-run] [--resume]`: GRPO on a Ray cluster.

One loop for synchronous (`train.max_staleness: 0`) and asynchronous training; they differ only in how many groups the
pool may have in flight while the learner updates.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medr1_ray.config import Config
from medr1_ray.records.recorded_groups import RECORDED
from medr1_ray.run.command import run_command
from medr1_ray.run.opening import open_session

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import SharedActors


def train(config: Config, *, resume: bool = False, engines: SharedActors | None = None) -> Path:
    """Run a training to its end; returns the path of its `summary.json`. `engines` that are lent to it stay up.

    Raises:
        ValueError: a setting, the data or the run directory is not usable; nothing has been trained.
        RuntimeError: the learner or a reward actor failed, no rollout actor was left for too long, or engine and
            learner disagree (`ParityError`). The run can be resumed from its last checkpoint.
        KeyboardInterrupt: Ctrl-C, SIGTERM, or a notice for the driver's node; in the loop the run is saved first.
    """
    with open_session(config, resume=resume, engines=engines) as session:
        # Engines serve nothing before their first weights.
        session.sync_weights()
        session.evaluate_before()
        with session.saved_when_stopped():
            while session.step < config.train.steps:
                groups = session.take_groups()
                report = session.update(groups)
                session.sync_weights()
                # After the sync, so that engines already generate the next groups.
                session.log_step(groups, report)
                session.scale_rollouts()
                session.evaluate_if_due()
                session.save_if_due()
                session.stop_if_asked()
            session.save()
        session.evaluate_after()
        return session.summarise()


def record_rollouts(config: Config, *, resume: bool = False) -> Path:
    """Generate and score the groups of `train.steps` steps with the model as it is, and learn nothing; returns the
    folder that `--replay` takes.

    Raises as `train` does; and ValueError where a run is to be resumed.
    """
    if resume:
        raise ValueError("--rollout-only cannot be resumed, it saves no checkpoint; start it in another run.dir")
    with open_session(config, resume=False) as session:
        session.sync_weights()
        while session.step < config.train.steps:
            session.record_rollouts()
    return config.run.dir / RECORDED


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("grpo", "GRPO on a Ray cluster.", train, arguments, record_rollouts)


if __name__ == "__main__":
    sys.exit(main())
