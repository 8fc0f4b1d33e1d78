"""The rollout and reward actors of one run, or of several runs one after the other.

Consumes: the settings of the actors, and those of each run. Produces: rollout and reward actors that are up. Waits for:
their start, and for all engines to forget the previous run. An engine takes far longer to start than a learner rank, so
a series of small trainings would spend most of its time on starts if it did not share them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from medr1_ray.base.code_digest import code_digest
from medr1_ray.cluster.connect import connect
from medr1_ray.cluster.driver_files import DriverFiles, driver_files, model_files
from medr1_ray.cluster.pending_calls import PendingCalls
from medr1_ray.cluster.placement import Place
from medr1_ray.config import Config
from medr1_ray.config.loading import first_difference
from medr1_ray.encoders.handle import EncoderActors
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.calls.engine_calls import EngineCalls
from medr1_ray.pool.reward_actors import RewardActors
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.rollout.defaults import EngineSettings

# The sections that the actors are started with.
_SECTIONS = ("mode", "model", "rollout", "reward", "cluster")


def launch_rollout_actor(files: DriverFiles, config: Config, index: int, options: Mapping[str, Any]) -> Any:
    """Start an actor with a vLLM engine, on a node that must see the driver's files."""
    actor = ray.remote(RolloutActor).options(**options)
    return actor.remote(EngineSettings.of(config, files), index, code_digest())


class SharedActors:
    """Rollout and reward actors. The constructor asks for them, `wait_until_up` waits.

    They serve one run at a time. After a failed run end them: they may still be busy with its requests.

    Args:
        config: the settings that the actors are started with; their logs go to its `run.dir`.
        files: of the driver's, which the nodes of the rollout actors must see.
        say: takes a line for the operator.
        ask: returns the place for a rollout actor, given its name; by default a placement group of its own.
    """

    def __init__(
        self,
        config: Config,
        files: DriverFiles,
        say: Callable[[str], None],
        ask: Callable[[str], Place] | None = None,
    ) -> None:
        self._config = config
        self.calls = PendingCalls()
        self.rollout_actors = RolloutActors(config, self.calls, say, partial(launch_rollout_actor, files), ask=ask)
        self.reward_actors = RewardActors(config, self.calls, say)
        self.encoders = EncoderActors(config, model_files(config))

    def wait_until_up(self) -> None:
        """Wait until `rollout.min_actors` rollout actors and all reward actors are up.

        Raises:
            RuntimeError: an actor failed to start or did not start in time, or there is no place for it.
        """
        self.rollout_actors.wait_until_up()
        self.reward_actors.wait_until_up()

    def require_fit(self, config: Config) -> None:
        """Raises ValueError where a run with these settings needs actors of its own."""
        if config.cluster.colocated:
            raise ValueError("cluster.colocated=true: engines on a learner's GPUs start and end with that learner")
        for section in _SECTIONS:
            found = first_difference(getattr(self._config, section), getattr(config, section), key=section)
            if found:
                raise ValueError(
                    f"{found.key}={found.now!r}, but the engines were started with {found.before!r}; a run that shares "
                    f"engines may not change {', '.join(_SECTIONS)}: start engines for this run"
                )

    def forget_run(self) -> None:
        """Make every engine serve nothing until the next run loads its weights, from version 0 on."""
        EngineCalls(self.rollout_actors).forget_run()


def _to_stderr(text: str) -> None:
    # stdout is for answers.
    print(text, file=sys.stderr, flush=True)


@contextmanager
def open_engines(config: Config, say: Callable[[str], None] = _to_stderr) -> Iterator[SharedActors]:
    """Actors that are up, on the cluster that `config` names or a new local one; everything is ended on leaving.

    Raises:
        ValueError: this machine has fewer GPUs than the engines ask for, or run.dir cannot be written.
        RuntimeError: an actor did not start within `cluster.start_timeout_seconds`.
    """
    started = time.monotonic()
    say(f"starting {config.rollout.actors} engine{'s' * (config.rollout.actors != 1)}; half a minute or more")
    connect(config)
    try:
        actors = SharedActors(config, driver_files(config), say)
        actors.wait_until_up()
        say(f"up after {time.monotonic() - started:.0f} s")
        yield actors
    finally:
        # Ends the actors too: they belong to this driver.
        ray.shutdown()
