"""How the driver brings policy versions to the engines: one object per way of sharing GPUs and moving weights.

`WeightChannel` leads both ends of a transport, which do not know each other. Consumes: the learner's weights. Waits
for: learner ranks and rollout actors, each call with a deadline. What a training does with it is always the same:
`make_room` before an update, `sync` before engines are to have what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medr1_ray.config import Config
from medr1_ray.weights.messages import WeightMember, weight_groups

if TYPE_CHECKING:
    from medr1_ray.learner.handle import Learner
    from medr1_ray.pool.groups import RolloutPool

ATTEMPTS = 2


def weight_channel(config: Config, learner: Learner, pool: RolloutPool) -> WeightChannel:
    """The channel for `cluster.weight_transport` and `cluster.colocated`."""
    if config.cluster.colocated:
        return ColocatedChannel(learner, pool)
    if config.cluster.weight_transport == "nccl":
        return BroadcastChannel(learner, pool)
    return WeightChannel(learner, pool)


class WeightChannel:
    """Learner and engines have devices of their own, and an update waits in a store until it is fetched."""

    def __init__(self, learner: Learner, pool: RolloutPool) -> None:
        self._learner = learner
        self._pool = pool

    def make_room(self) -> None:
        """Let the learner have the device that it updates on: here it has one anyhow."""

    def sync(self, version: int) -> None:
        """Bring every rollout actor to the learner's weights, as policy version `version`.

        Raises RuntimeError when an actor or a rank fails or passes `cluster.sync_timeout_seconds`.
        """
        self._pool.load_weights(self._learner.export_weights(version))


class ColocatedChannel(WeightChannel):
    """Each learner rank shares its GPU with an engine: one of them has the memory at a time."""

    def make_room(self) -> None:
        self._pool.call("sleep", "falling asleep")

    def sync(self, version: int) -> None:
        self._pool.load_weights(self._learner.export_weights(version))
        self._learner.release_weights()
        self._pool.call("wake", "waking")


class BroadcastChannel(WeightChannel):
    """Learner and engines form a group, in which all take part in every sync; a new one when the members change."""

    def __init__(self, learner: Learner, pool: RolloutPool) -> None:
        super().__init__(learner, pool)
        self._members: list[WeightMember] = []

    def sync(self, version: int) -> None:
        """As in the base. A broadcast that breaks is tried again, in a new group of the actors that are left."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._broadcast(version)
                return
            except RuntimeError:
                self._members = []
                if attempt == ATTEMPTS:
                    raise

    def _broadcast(self, version: int) -> None:
        members: list[WeightMember] = list(self._pool.call("weight_member", "naming itself").values())
        if not members:
            raise RuntimeError(f"no rollout actor is there to take policy version {version}")
        new = members != self._members
        if new:
            self._members = []
            address = self._learner.weight_group_address()
            places = weight_groups(address, members)
            opening = self._learner.join_weight_group(address, places[0].world_size)
            try:
                self._pool.call(
                    "join_weight_group",
                    "joining the weight group",
                    {member.actor: (place,) for member, place in zip(members, places, strict=True)},
                )
            finally:
                self._learner.finish(opening)
            self._members = members
        update = self._learner.export_weights(version, to_newcomers=new)
        sending = self._learner.send_weights()
        try:
            reports = self._pool.load_weights(update)
        finally:
            self._learner.finish(sending)
        if len(reports) < len(members):
            raise RuntimeError(
                f"policy version {version} reached {len(reports)} of {len(members)} rollout actors; look at logs/"
            )
