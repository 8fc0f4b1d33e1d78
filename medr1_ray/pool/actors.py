"""The rollout actors of a run: started, loaded with weights, drained and replaced. `actor_states.py` has the states.

Produces: serving actors. Waits for: places, engines and weights, all in the background; only a weight sync blocks, up
to its deadline, and only on actors that are up. Unblocked by: `poll`, which every waiting loop of the driver calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from medr1_ray.base.deadline import Limit
from medr1_ray.base.stopping import break_off_if_asked
from medr1_ray.cluster.pending_calls import PendingCalls, describe_error, remote
from medr1_ray.cluster.placement import Place, draining_nodes
from medr1_ray.cluster.resources import NotStartedError
from medr1_ray.config import Config
from medr1_ray.pool.actor_states import ActorCounts, ActorStage, ActorStates, Leave
from medr1_ray.pool.calls.failures import raised_in_health
from medr1_ray.pool.places import Places
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.weights.messages import LoadReport, WeightUpdate

Launcher = Callable[[Config, int, Mapping[str, Any]], Any]
"""Starts a rollout actor from the settings, its number and Ray's options."""

_POLL_SECONDS = 0.5
_SAY_EVERY_SECONDS = 30.0
# This many failed starts in a row, besides one for each wanted actor (which may all have been on one node), have one
# cause, which another start will not remove.
_FAILURES_ALLOWED = 2
_UP = (ActorStage.JOINING, ActorStage.SERVING, ActorStage.DRAINING)


@dataclass
class _Actor:
    place: Place
    handle: Any = None
    node_id: str = ""
    loading: WeightUpdate | None = None
    lacks_weights: bool = False  # since a broadcast that another actor broke


class RolloutActors:
    """Keeps the wanted number of rollout actors, each with the current weights.

    Args:
        config: the run's settings.
        calls: where answers are awaited, shared with the pool.
        say: takes a line for the operator whenever an actor comes or goes.
        launch: starts an actor; a simulation passes a launcher of its own.
        clock: seconds, monotonic.
        ask: returns the place for an actor, given its name; by default a placement group of its own.

    `sync_limit` and `rollout_limit` are the limits of calls that concern weights, and of those that generate.
    """

    def __init__(
        self,
        config: Config,
        calls: PendingCalls,
        say: Callable[[str], None],
        launch: Launcher,
        clock: Callable[[], float] = time.monotonic,
        ask: Callable[[str], Place] | None = None,
    ) -> None:
        self._config = config
        self._calls = calls
        self.say = say
        self._launch = launch
        self.meanwhile: Callable[[], None] = lambda: None
        self._places = Places(config, ask)
        self._clock = clock
        self._states = ActorStates(clock, config.rollout.actors)
        self._actors: dict[str, _Actor] = {}
        self._gone: list[str] = []
        self._current: WeightUpdate | None = None
        self._begun_seconds: float | None = None  # when the actors that were up first had weights
        self._look_at_seconds = self._say_at_seconds = clock()
        self._last_failure = ""
        self.sync_limit = Limit(config.cluster.sync_timeout_seconds, "cluster.sync_timeout_seconds")
        self.rollout_limit = Limit(config.cluster.rollout_timeout_seconds, "cluster.rollout_timeout_seconds")
        self.tick()

    @property
    def serving(self) -> dict[str, Any]:
        """Handles of the actors that take prompts, by name."""
        at = self._states.at(ActorStage.SERVING)
        return {name: self._actors[name].handle for name in at if not self._actors[name].lacks_weights}

    @property
    def up(self) -> dict[str, Any]:
        """Handles of the actors that can load weights now, by name."""
        up = self._states.at(*_UP)
        return {name: self._actors[name].handle for name in up if self._actors[name].loading is None}

    @property
    def draining(self) -> list[str]:
        """Names of the actors that only finish their groups."""
        return self._states.at(ActorStage.DRAINING)

    def may_lack_weights(self, name: str) -> bool:
        """Whether an actor in health may refuse to generate: it is loading, or a broadcast broke."""
        actor = self._actors.get(name)
        return actor is not None and (actor.lacks_weights or actor.loading is not None)

    def has(self, name: str) -> bool:
        """Whether this actor has not left."""
        return name in self._actors

    def counts(self) -> ActorCounts:
        return self._states.counts()

    def take_gone(self) -> list[str]:
        """Names of the actors that left since the last call; their groups are to be issued again."""
        gone, self._gone = self._gone, []
        return gone

    def wait_until_up(self, fewest: int | None = None) -> None:
        """Wait until this many actors are up, by default `rollout.min_actors`. They serve after a `load_weights`.

        Raises:
            RuntimeError: an actor failed to start, several in a row were lost, or the cluster has too few places.
        """
        if fewest is None:
            fewest, _ = self._config.rollout.actor_range
        while len(self.up) < fewest:
            break_off_if_asked()
            self.poll(_POLL_SECONDS)
            if waiting := self._states.at(ActorStage.WANTED):
                self._places.require_in_time(waiting, self._states.seconds_at_stage(waiting[0]))

    def ask(
        self,
        name: str,
        method: Callable[..., Any],
        *arguments: Any,
        then: Callable[[Any], None],
        limit: Limit | None = None,
        otherwise: Callable[[str, RayError], None] | None = None,
    ) -> None:
        """Call a method of an actor that is up; `then` will receive the answer.

        The one policy for a call that fails or is not answered within `limit`: the actor is given up and replaced, and
        its groups are issued again. `otherwise` may make an exception, given the actor's name and the error.
        """
        self._calls.add(
            remote(self._actors[name].handle, method, *arguments),
            then,
            partial(otherwise or self.on_error, name),
            f"`{method.__name__}()`",
            limit,
        )

    def load_weights(self, update: WeightUpdate, break_off: Callable[[], None] | None = None) -> list[LoadReport]:
        """Bring every actor that is up to `update.version`; requests in flight go on with the new weights.

        An actor that fails, reports another version or digest, or exceeds `cluster.sync_timeout_seconds` is given up.
        In a broadcast one dead member fails the others as well: those stay, and `break_off` is called once, so that
        they wait no longer. An actor that is still loading an older version is not waited for; it loads this one next.
        """
        self._current = update
        names = list(self.up)
        reports: list[LoadReport] = []
        for name in names:
            self._load(name, reports.append, together=break_off is not None)
        while any(name in self._actors and self._actors[name].loading is update for name in names):
            self.wait(_POLL_SECONDS)
            if break_off is not None and not all(name in self._actors for name in names):
                break_off()
                break_off = None
        if self._begun_seconds is None:
            self._begun_seconds = self._clock()
        return reports

    def forget_weights(self) -> None:
        """An actor that joins loads nothing until the next `load_weights`."""
        self._current = None

    def scale(self, target: int, why: str) -> None:
        """Set the wanted number of actors: missing ones start in the background, superfluous ones drain."""
        if target == self._states.target:
            return
        self.say(f"rollout actors: {target} wanted, {self._states.target} before: {why}")
        self._states.target = target

    def lose(self, name: str, reason: str, *, own_failure: bool = False) -> None:
        """Give up an actor that died, failed or exceeded a deadline; does nothing if it has left already.

        Raises:
            RuntimeError: the actor failed on its own before the run began; the others would fail the same way.
        """
        if self._states.stage(name) is None:
            return
        if own_failure and self._begun_seconds is None:
            log = self._config.run.dir / "logs" / f"{name}.log"
            raise NotStartedError(f"{name} did not start: {reason}" + (f" (more in {log})" if log.exists() else ""))
        self._last_failure = f"{name}: {reason}"
        self._end(name, Leave.FAILED if own_failure else Leave.LOST, reason)

    def on_error(self, name: str, error: RayError) -> None:
        """Give up an actor whose call ended with this error; a handler for `PendingCalls.add`."""
        self.lose(name, describe_error(error), own_failure=raised_in_health(error))

    def has_drained(self, name: str) -> None:
        """A draining actor has finished its last group."""
        self._end(name, Leave.DRAINED, "it has finished its groups")

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Handle answers, waiting this long for the first, and let actors join and leave."""
        self._calls.poll(timeout_seconds)
        self.tick()

    def wait(self, timeout_seconds: float) -> None:
        """`poll`, and let the pool go on with what was answered (`meanwhile`): what waits here may take minutes."""
        self.poll(timeout_seconds)
        self.meanwhile()

    def tick(self) -> None:
        """Let actors join and leave; never waits.

        Raises:
            RuntimeError: no actor has been serving for too long, or several in a row ended before they served.
        """
        now = self._clock()
        # Every waiting loop of the driver calls this, and each look asks Ray for nodes and placement groups.
        if now < self._look_at_seconds:
            return
        self._look_at_seconds = now + _POLL_SECONDS
        self._give_up_the_late()
        self._heed_draining_nodes()
        for name in self._states.superfluous():
            self._retire(name, self._config.cluster.rollout_timeout_seconds, "more actors than needed")
        for _ in range(self._states.missing()):
            name = self._states.ask()
            self._actors[name] = _Actor(self._places.ask(name))
        for name in self._states.at(ActorStage.WANTED):
            if self._actors[name].place.is_there():
                self._start(name)
        self._places.request_nodes(self._states.target if self._states.at(ActorStage.WANTED) else 0)
        self._look_after_the_empty()

    def _start(self, name: str) -> None:
        actor = self._actors[name]
        actor.node_id = actor.place.node_id()
        options = {**actor.place.options(), "name": name, "max_concurrency": 1000}
        actor.handle = self._launch(self._config, int(name.rpartition("-")[2]), options)
        self._states.placed(name)
        # Its limit is that of the start, which `ActorStates.late` keeps.
        self.ask(name, RolloutActor.ping, then=partial(self._on_up, name))

    def _on_up(self, name: str, _: str) -> None:
        if self._states.stage(name) is ActorStage.STARTING:
            self._states.up(name)
            # A broadcast cannot be joined later; then the newcomer loads with the next sync.
            if self._current is not None and self._current.lasting:
                self._load(name)

    def _load(
        self, name: str, then: Callable[[LoadReport], None] = lambda report: None, *, together: bool = False
    ) -> None:
        update = self._current
        assert update is not None
        self._actors[name].loading = update
        self.ask(
            name,
            RolloutActor.load_weights,
            update,
            then=partial(self._on_loaded, name, update, then),
            limit=self.sync_limit,
            otherwise=self._on_shared_load_error if together else None,
        )

    def _on_shared_load_error(self, name: str, error: RayError) -> None:
        if not raised_in_health(error):  # otherwise it may be another's fault
            self.on_error(name, error)
        elif name in self._actors:
            self._actors[name].loading = None
            self._actors[name].lacks_weights = True

    def _on_loaded(
        self, name: str, update: WeightUpdate, then: Callable[[LoadReport], None], report: LoadReport
    ) -> None:
        if self._states.stage(name) is None:
            return
        if (report.version, report.digest) != (update.version, update.digest):
            reason = (
                f"it reports version {report.version} with digest {report.digest} after loading version "
                f"{update.version} with digest {update.digest}; its completions would come from unknown weights"
            )
            self.lose(name, reason, own_failure=True)
            return
        self._actors[name].loading = None
        self._actors[name].lacks_weights = False
        then(report)
        # A newer version was published while this one was being loaded.
        if update is not self._current:
            if self._current is not None and self._current.lasting:
                self._load(name)
        elif self._states.stage(name) is ActorStage.JOINING:
            self._states.joined(name)
            if self._begun_seconds is not None:
                self.say(f"{name} has joined with version {update.version}; {self._counted()}")

    def _give_up_the_late(self) -> None:
        cluster = self._config.cluster
        for name in self._states.late(cluster.start_timeout_seconds):
            starting = self._states.stage(name) is ActorStage.STARTING
            limit = f"start within cluster.start_timeout_seconds={cluster.start_timeout_seconds:g}"
            self.lose(name, f"it did not {limit if starting else 'drain in time'}", own_failure=starting)

    def _heed_draining_nodes(self) -> None:
        longest = self._config.cluster.rollout_timeout_seconds
        # A colocated engine goes with its rank, whose node is looked after (`cluster/leaving_nodes.py`).
        for node_id, seconds_left in () if self._config.cluster.colocated else draining_nodes().items():
            for name in [name for name, actor in self._actors.items() if actor.node_id == node_id]:
                self._retire(name, min(seconds_left, longest), "its node is about to go away")

    def _retire(self, name: str, limit_seconds: float, reason: str) -> None:
        stage = self._states.stage(name)
        if stage is ActorStage.SERVING:
            self._states.drain(name, limit_seconds)
            self.say(f"{name} is draining: {reason}; {self._counted()}")
        elif stage is not ActorStage.DRAINING:
            self._end(name, Leave.CANCELLED, reason)

    def _end(self, name: str, why: Leave, reason: str) -> None:
        self._states.leave(name, why)
        actor = self._actors.pop(name)
        self._gone.append(name)
        if actor.handle is not None:
            ray.kill(actor.handle)
        actor.place.give_back()
        self.say(f"{name} is gone ({why.value}): {reason}; {self._counted()}")

    def _look_after_the_empty(self) -> None:
        counts, now = self._states.counts(), self._clock()
        waiting = self._states.at(ActorStage.WANTED)
        if not counts.serving:
            # Nothing can serve before the first weights; until then `wait_until_up` has a limit for places.
            begun = self._begun_seconds if self._begun_seconds is not None else now
            seconds = min(self._states.empty_seconds(), now - begun)
            cluster = self._config.cluster
            # Where an actor has a place it is starting, which takes time of its own.
            starting = cluster.start_timeout_seconds if len(waiting) < counts.present else 0.0
            limit = cluster.placement_timeout_seconds + starting
            # One that is up and waits for its weights will serve: after an update, where a sync brings them.
            nobody = seconds > limit and not self._states.at(ActorStage.JOINING)
            if nobody or counts.failures_in_a_row >= counts.target + _FAILURES_ALLOWED:
                waiting_for = f". Waiting for {', '.join(waiting)}: {self._places.missing(len(waiting))}"
                raise RuntimeError(
                    f"no rollout actor has been serving for {seconds:.0f} s, and {counts.failures_in_a_row} in a row "
                    f"ended before they served. Most recent failure: {self._last_failure}"
                    + (waiting_for if waiting else "") + ". Fix the cause"
                    + ("" if self._begun_seconds is None else " and continue from the last checkpoint with --resume")
                )
        if waiting and now > self._say_at_seconds + _SAY_EVERY_SECONDS:
            self._say_at_seconds = now
            seconds = self._states.seconds_at_stage(waiting[0])
            self.say(f"waiting for {', '.join(waiting)} for {seconds:.0f} s: {self._places.missing(len(waiting))}")

    def _counted(self) -> str:
        counts = self._states.counts()
        return f"{counts.serving} of {counts.target} serving"
