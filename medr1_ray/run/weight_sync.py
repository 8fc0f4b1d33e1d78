"""The driver's part of a weight sync: the learner publishes a policy version, the engines load it.

One class per way of sharing GPUs and moving weights; each leads both ends of a transport, which do not know each other.
Consumes: the learner's weights. Waits for: learner ranks, while the pool goes on with its groups, and rollout actors;
every call has a deadline. A training uses all of them in the same way: `make_room` before an update, `sync` before the
engines need its result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from medr1_ray.config import Config
from medr1_ray.learner.messages import LearnerLostError
from medr1_ray.weights.messages import BroadcastError, WeightMember, weight_groups
from medr1_ray.weights.transports import break_off

if TYPE_CHECKING:
    from medr1_ray.learner.handle import Call, Learner
    from medr1_ray.pool.groups import RolloutPool

# The first failures may be deaths of single actors, which are then no longer members.
ATTEMPTS = 3


def make_weight_sync(config: Config, learner: Learner, pool: RolloutPool) -> WeightSync:
    """The one for `cluster.weight_transport` and `cluster.colocated`."""
    if config.cluster.colocated:
        return ColocatedSync(learner, pool)
    if config.cluster.weight_transport == "nccl":
        return BroadcastSync(learner, pool)
    return WeightSync(learner, pool)


class WeightSync:
    """Learner and engines have their own devices; an update stays in a store until the engines load it."""

    def __init__(self, learner: Learner, pool: RolloutPool) -> None:
        self._learner = learner
        self._pool = pool

    def make_room(self) -> None:
        """Free the learner's device before an update; nothing to do where the learner does not share it."""

    def sync(self, version: int) -> None:
        """Bring every rollout actor to the learner's weights, as policy version `version`.

        Raises RuntimeError when an actor or a rank fails or exceeds `cluster.sync_timeout_seconds`.
        """
        self._pool.load_weights(self._learner.publish_weights(version, meanwhile=self._pool.poll))


class PassingSync(WeightSync):
    """Base of the ways whose updates do not last: an engine that comes later can only take part in another sync."""

    def __init__(self, learner: Learner, pool: RolloutPool) -> None:
        super().__init__(learner, pool)
        self._version = 0
        pool.renew_weights = lambda: self.sync(self._version)

    def sync(self, version: int) -> None:
        """As in the base."""
        self._version = version
        self._move(version)

    def _move(self, version: int) -> None:
        raise NotImplementedError


class ColocatedSync(PassingSync):
    """Each learner rank shares its GPU with an engine; only one of them has the memory at a time."""

    def make_room(self) -> None:
        self._pool.engines.sleep()

    def _move(self, version: int) -> None:
        self._pool.load_weights(self._learner.publish_weights(version, meanwhile=self._pool.poll))
        # Before the engines wake: the published copy and the KV cache need not fit on the GPU together.
        self._learner.release_weights(meanwhile=self._pool.poll)
        self._pool.engines.wake()


class BroadcastSync(PassingSync):
    """Learner and engines form a broadcast group, in which all take part in every sync; it is rebuilt when the members
    change."""

    def __init__(self, learner: Learner, pool: RolloutPool) -> None:
        super().__init__(learner, pool)
        self._members: list[WeightMember] = []
        self._address = ""

    def _move(self, version: int) -> None:
        """A broadcast that breaks is retried in a new group of the actors that are left and in health."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._broadcast(version)
                return
            except BroadcastError:
                # Forces a new group: after an error vLLM's communicator is in an unknown state.
                self._members = []
                if attempt == ATTEMPTS:
                    raise

    def _broadcast(self, version: int) -> None:
        while not (members := self._pool.engines.weight_members()):
            self._pool.wait_until_up()
        # A restarted actor has the same name but another incarnation, and holds no communicator.
        new = members != self._members
        if new:
            self._members = []
            address = self._learner.weight_group_address()
            places = weight_groups(address, members)
            # Not waited for yet: the group opens only when learner and engines join at the same time.
            opening = self._learner.join_weight_group(address, places[0].world_size)
            with self._ended(opening):
                self._pool.engines.join_weight_group(
                    {member.actor: place for member, place in zip(members, places, strict=True)}
                )
            self._members, self._address = members, address
        update = self._learner.publish_weights(version, to_newcomers=new, meanwhile=self._pool.poll)
        # Started before the engines are told to receive; both block until the other side is there.
        sending = self._learner.send_weights()
        with self._ended(sending):
            reports = self._pool.load_weights(update, break_off=partial(break_off, self._address))
        # A lost actor leaves a broken communicator, so that the group must be rebuilt.
        if len(reports) < len(members):
            raise BroadcastError(
                f"policy version {version} reached {len(reports)} of {len(members)} rollout actors; look at logs/"
            )

    @contextmanager
    def _ended(self, call: Call) -> Iterator[None]:
        """While the engines do their part; then the learner's must have ended, before another attempt too."""
        try:
            yield
        except BroadcastError:
            with suppress(BroadcastError):
                self._finish(call)
            raise
        self._finish(call)

    def _finish(self, call: Call) -> None:
        try:
            self._learner.finish(call)
        except LearnerLostError:
            raise
        except RuntimeError as error:
            # What the others of a group say where one has died.
            raise BroadcastError(str(error)) from error
