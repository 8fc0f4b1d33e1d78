"""The rollout and reward actors of a run, or of several: what one training leaves, the next takes over.

Consumes: the settings that the engines have, and those of each run. Produces: a fleet and reward actors that are up.
Waits for: their start, and for all engines to have forgotten the run before. An engine takes far longer to start than a
learner rank: a row of small trainings is mostly starts unless they share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from medr1_ray.cluster.connect import connect
from medr1_ray.cluster.pending_calls import Calls, describe_error
from medr1_ray.cluster.placement import Place, describe_missing
from medr1_ray.cluster.resources import REWARD_ACTOR_CPUS, demands
from medr1_ray.config import Config
from medr1_ray.config.loading import flat_settings
from medr1_ray.pool.actors import RolloutFleet
from medr1_ray.rewards.actor import RewardActor

_SCORE_RETRIES = 2
# What the actors are started with; a run with others needs actors of its own.
_FIXED = ("mode", "model", "rollout", "reward", "cluster")


class Engines:
    """Rollout and reward actors. The constructor asks for them, `wait_until_up` waits.

    They serve one run at a time. After one that failed they are to be ended: they may still have what it asked for.

    Args:
        config: the settings that they are started with; their logs go to its `run.dir`.
        say: takes a line for the operator.
        ask: gives a rollout actor's place, by its name; by default one of its own.
    """

    def __init__(
        self, config: Config, say: Callable[[str], None], ask: Callable[[str], Place] | None = None
    ) -> None:
        self._config = config
        self.calls = Calls()
        self.fleet = RolloutFleet(config, self.calls, say, ask=ask)
        self.reward_actors = start_reward_actors(config)

    def wait_until_up(self) -> None:
        """Wait until the fewest rollout actors that a run may have are up, and all reward actors.

        Raises:
            RuntimeError: an actor failed to start or did not start in time, or there is no place for it.
        """
        self.fleet.wait_until_up()
        wait_until_up(self.reward_actors, self._config)

    def require_fit(self, config: Config) -> None:
        """Raises ValueError where a run with these settings needs engines of its own."""
        if config.cluster.colocated:
            raise ValueError("cluster.colocated=true: engines on a learner's GPUs start and end with that learner")
        ours, theirs = flat_settings(self._config), flat_settings(config)
        for key in sorted(ours.keys() | theirs.keys()):
            if key.split(".")[0] in _FIXED and ours.get(key) != theirs.get(key):
                raise ValueError(
                    f"{key}={theirs.get(key)!r}, but the engines were started with {ours.get(key)!r}; a run may differ "
                    f"from its engines in all but {', '.join(_FIXED)}: start engines for this one"
                )

    def forget_run(self) -> None:
        """Let every engine serve nothing until the next run brings its weights, from version 0 on.

        Raises:
            RuntimeError: an engine failed in it, or did not answer within `cluster.sync_timeout_seconds`.
        """
        self.fleet.forget_run()


@contextmanager
def open_engines(config: Config, say: Callable[[str], None] = print) -> Iterator[Engines]:
    """Engines that are up, on the cluster that `config` names or one of their own; all is ended on leaving.

    Raises:
        ValueError: this machine has fewer GPUs than the engines ask for.
        RuntimeError: an actor did not start within `cluster.start_timeout_seconds`.
    """
    connect(config)
    try:
        engines = Engines(config, say)
        engines.wait_until_up()
        yield engines
    finally:
        ray.shutdown()


def start_reward_actors(config: Config) -> dict[str, Any]:
    """The reward actors by name. Ray restarts them and asks them again: a score is a function of its arguments."""
    labels = dict(config.cluster.labels.reward)
    return {
        name: ray.remote(RewardActor)
        .options(
            name=name,
            num_cpus=REWARD_ACTOR_CPUS,
            label_selector=labels or None,
            max_restarts=-1,
            max_task_retries=_SCORE_RETRIES,
        )
        .remote(config.reward.functions, config.mode, config.reward.timeout_seconds, name)
        for name in (f"reward-{index}" for index in range(config.reward.actors))
    }


def wait_until_up(reward_actors: dict[str, Any], config: Config) -> None:
    pings = {actor.ping.remote(): name for name, actor in reward_actors.items()}
    limit = config.cluster.start_timeout_seconds
    done, late = ray.wait(list(pings), num_returns=len(pings), timeout=limit)
    for ping in done:
        try:
            ray.get(ping)
        except RayError as error:
            raise RuntimeError(f"{pings[ping]} did not start: {describe_error(error)}") from error
    if late:
        names = ", ".join(pings[ping] for ping in late)
        missing = describe_missing(demands(config)[2])
        raise RuntimeError(f"not up after cluster.start_timeout_seconds={limit:g}: {names}; {missing}")
