"""The accounts of the rollout pool as a pure state machine: every issued group is used, dropped or in flight.

A group is issued, generated on an actor, scored, and then ready; it leaves as used, or as dropped for a counted reason.
No Ray here; the clock is injected, so that tests control the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter

# Who waits for groups asks every second at least, and on a fast cluster hundreds of times a second.
_ASKED_SECONDS = 0.5
_AWAY_SECONDS = 5.0
_number = attrgetter("number")


class GroupStage(Enum):
    """The stage of a group in flight."""

    WAITING = "waiting"
    GENERATING = "generating"
    SCORING = "scoring"
    READY = "ready"


@dataclass(frozen=True)
class LedgerCounts:
    """Counts at one moment; `issued == used + dropped + in_flight` always holds.

    `reissued` counts how often a group of a lost actor was issued again, `late` the answers that came after their group
    had been given to another actor or had left.
    """

    issued: int
    used: int
    zero_variance: int
    in_flight: int
    dropped: dict[str, int]
    reissued: int
    late: int

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())


@dataclass
class _Entry:
    prompt_id: str
    number: int  # in the order of issue
    stage: GroupStage
    since_seconds: float
    actor: str | None = None
    oldest_version: int | None = None


class Ledger:
    """Accounts of all groups of a run.

    Args:
        clock: seconds, monotonic.
        issued, used, zero_variance, dropped, reissued, late: the totals of the run so far, when it is resumed.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        issued: int = 0,
        used: int = 0,
        zero_variance: int = 0,
        dropped: dict[str, int] | None = None,
        reissued: int = 0,
        late: int = 0,
    ) -> None:
        self._clock = clock
        self._asked_seconds = clock()  # when somebody last asked what is overdue
        self._issued = issued
        self._used = used
        self._zero_variance = zero_variance
        self._dropped = Counter(dropped or {})
        self._reissued = reissued
        self._late = late
        self._entries: dict[str, _Entry] = {}
        # By stage, and counted by actor: with hundreds in flight, looking through all of them at each poll was a third
        # of the driver's time.
        self._at: dict[GroupStage, dict[str, _Entry]] = {stage: {} for stage in GroupStage}
        self._load: Counter[str] = Counter()

    def issue(self, prompt_id: str) -> None:
        """Open a group. Raises ValueError when the id is in flight already."""
        if prompt_id in self._entries:
            raise ValueError(f"prompt id {prompt_id!r} is in flight already; ids must be unique in a run")
        self._issued += 1
        entry = _Entry(prompt_id, self._issued, GroupStage.WAITING, self._clock())
        self._entries[prompt_id] = self._at[GroupStage.WAITING][prompt_id] = entry

    def assign(self, prompt_id: str, actor: str) -> None:
        """`actor` starts generating the group."""
        self._move(prompt_id, GroupStage.WAITING, GroupStage.GENERATING).actor = actor
        self._load[actor] += 1

    def lose_actor(self, actor: str) -> list[str]:
        """Put the unfinished groups of a lost actor back to waiting; returns their ids in the order of issue."""
        lost = [prompt_id for prompt_id in self.at(GroupStage.GENERATING) if self._entries[prompt_id].actor == actor]
        for prompt_id in lost:
            self._move(prompt_id, GroupStage.GENERATING, GroupStage.WAITING).actor = None
        del self._load[actor]
        self._reissued += len(lost)
        return lost

    def put_back(self, prompt_id: str, actor: str) -> None:
        """The actor generates the group no longer; it waits again, unless it is another actor's by now or has left."""
        if self.actor_of(prompt_id) == actor:
            self._move(prompt_id, GroupStage.GENERATING, GroupStage.WAITING).actor = None
            self._load[actor] -= 1
            self._reissued += 1

    def generated(self, prompt_id: str, actor: str, oldest_version: int) -> bool:
        """Note an answer. False, and counted as late, when the group is no longer this actor's or has left."""
        entry = self._entries.get(prompt_id)
        # The same group may be under way on another actor by now, hence the comparison of the name.
        if entry is None or entry.stage is not GroupStage.GENERATING or entry.actor != actor:
            self._late += 1
            return False
        self._move(prompt_id, GroupStage.GENERATING, GroupStage.SCORING).oldest_version = oldest_version
        self._load[actor] -= 1
        return True

    def scored(self, prompt_id: str) -> None:
        """The group is ready for the learner."""
        self._move(prompt_id, GroupStage.SCORING, GroupStage.READY)

    def use(self, prompt_id: str, *, zero_variance: bool) -> None:
        """The learner takes the group."""
        self._leave(prompt_id, GroupStage.READY)
        self._used += 1
        self._zero_variance += zero_variance

    def drop(self, prompt_id: str, reason: str) -> None:
        """The group ends unused, for a counted reason; not while an actor generates it."""
        self._leave(prompt_id, GroupStage.WAITING, GroupStage.SCORING, GroupStage.READY)
        self._dropped[reason] += 1

    def drop_stale(self, version: int, max_staleness: int) -> list[str]:
        """Drop the ready groups whose oldest token is more than `max_staleness` versions behind `version`."""
        stale = [
            prompt_id
            # Only ready groups: how old the tokens of an unfinished group will be is not known yet.
            for prompt_id, entry in self._at[GroupStage.READY].items()
            if entry.oldest_version is not None and version - entry.oldest_version > max_staleness
        ]
        for prompt_id in stale:
            self.drop(prompt_id, "stale")
        return stale

    def at(self, stage: GroupStage) -> list[str]:
        """Ids at a stage, in the order of issue."""
        return [entry.prompt_id for entry in sorted(self._at[stage].values(), key=_number)]


    def load_of(self, actors: Sequence[str]) -> dict[str, int]:
        """Number of groups that each actor is generating."""
        return {actor: self._load[actor] for actor in actors}

    def overdue(self, limit_seconds: float) -> dict[str, str]:
        """Ids of groups that have been generated for longer than the limit, each with its actor.

        Time in which nobody asked does not count: what was done then is yet to be fetched.
        """
        now = self._clock()
        away = now - self._asked_seconds
        if away < _ASKED_SECONDS:
            return {}
        self._asked_seconds = now
        if away > _AWAY_SECONDS:
            for entry in self._at[GroupStage.GENERATING].values():
                entry.since_seconds += away
        return {
            prompt_id: entry.actor
            for prompt_id, entry in self._at[GroupStage.GENERATING].items()
            if entry.actor is not None and now - entry.since_seconds > limit_seconds
        }

    def actor_of(self, prompt_id: str) -> str | None:
        """The actor that generates this group; None where none does."""
        entry = self._entries.get(prompt_id)
        return entry.actor if entry is not None and entry.stage is GroupStage.GENERATING else None

    def counts(self) -> LedgerCounts:
        """The counts; raises AssertionError when they do not add up, which only a bug can cause."""
        counts = LedgerCounts(
            issued=self._issued,
            used=self._used,
            zero_variance=self._zero_variance,
            in_flight=len(self._entries),
            dropped=dict(self._dropped),
            reissued=self._reissued,
            late=self._late,
        )
        assert counts.issued == counts.used + counts.dropped_total + counts.in_flight, counts
        return counts

    def _move(self, prompt_id: str, before: GroupStage, after: GroupStage) -> _Entry:
        entry = self._entries[prompt_id]
        assert entry.stage is before, f"{prompt_id} is {entry.stage}, not {before}"
        entry.stage = after
        self._at[after][prompt_id] = self._at[before].pop(prompt_id)
        entry.since_seconds = self._clock()
        return entry

    def _leave(self, prompt_id: str, *stages: GroupStage) -> None:
        stage = self._entries[prompt_id].stage
        assert stage in stages, f"{prompt_id} is {stage}, not one of {stages}"
        del self._entries[prompt_id], self._at[stage][prompt_id]


def room(
    in_flight: int, *, groups_per_step: int, versions_per_step: int, max_staleness: int, versions_ahead: int
) -> int:
    """Number of groups that may be issued now and still be young enough when they are used.

    A group with j others before it is used j // groups_per_step steps after the next one, and so is sampled at
    least `versions_ahead + (j // groups_per_step) * versions_per_step` versions before its use, where
    `versions_ahead` is the version of the learner at the next use minus the version that the engines hold.
    """
    slack = max_staleness - versions_ahead
    # + 1: the groups of the next use itself (j < groups_per_step) lag behind by `versions_ahead` alone.
    steps = slack // versions_per_step + 1 if slack >= 0 else 0
    return max(0, steps * groups_per_step - in_flight)
