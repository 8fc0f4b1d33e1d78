"""The states of rollout actors as a pure state machine: every actor that was asked for is in one of them, or gone.

    wanted ──placed──▶ starting ──up──▶ joining ──joined──▶ serving ──drain──▶ draining
       └──────────────────┴────────────────┴────────────────────┴──── leave ──────┴──▶ gone

`wanted` waits for a place in the cluster, `starting` for its engine, `joining` for the current weights. Only `serving`
actors get prompts, and only actors that hold the current weights serve. A name is never used twice.
No Ray here; the clock is injected, so that tests control the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class ActorStage(Enum):
    """The state of an actor."""

    WANTED = "wanted"
    STARTING = "starting"
    JOINING = "joining"
    SERVING = "serving"
    DRAINING = "draining"


class Leave(Enum):
    """Why an actor left: it drained, it was cancelled before it served, it was lost, or it failed on its own."""

    DRAINED = "drained"
    CANCELLED = "cancelled"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True)
class ActorCounts:
    """Counts at one moment; `asked == present + gone` always holds, in the counts of one start of a run.

    `failures_in_a_row` counts actors that failed or were lost before they served, since the last one joined.
    """

    target: int
    asked: int
    at: dict[ActorStage, int]
    gone: dict[Leave, int]
    failures_in_a_row: int

    @property
    def present(self) -> int:
        return sum(self.at.values())

    @property
    def serving(self) -> int:
        return self.at[ActorStage.SERVING]

    @property
    def lost(self) -> int:
        """Actors that died, failed or exceeded a deadline."""
        return self.gone[Leave.LOST] + self.gone[Leave.FAILED]

    def tally(self) -> dict[str, int]:
        """How many were asked for, and how many are gone, by reason."""
        return {"asked": self.asked, **{why.value: self.gone[why] for why in Leave}}

    def after(self, earlier: Mapping[str, int]) -> ActorCounts:
        """The same with those of earlier starts of the run added (their `tally`), whose last actors ended with them."""
        gone = {why: self.gone[why] + earlier.get(why.value, 0) for why in Leave}
        return replace(self, asked=self.asked + earlier.get("asked", 0), gone=gone)


@dataclass
class _Member:
    stage: ActorStage
    since_seconds: float
    drain_until_seconds: float | None = None


class ActorStates:
    """The states of all actors of a pool.

    Args:
        clock: seconds, monotonic.
        target: wanted number of actors, not counting those that drain.
    """

    def __init__(self, clock: Callable[[], float], target: int) -> None:
        self._clock = clock
        self.target = target
        self._members: dict[str, _Member] = {}  # in the order of `ask`
        self._gone: Counter[Leave] = Counter()
        self._asked = 0
        self._failures_in_a_row = 0
        self._not_before_seconds = clock()
        self._last_stopped_seconds = clock()  # when an actor last stopped serving; initially now

    def missing(self) -> int:
        """How many actors to ask for now; 0 during the pause after a failed start, which doubles with each of them."""
        if self._clock() < self._not_before_seconds:
            return 0
        return max(0, self.target - self._staying())

    def superfluous(self) -> list[str]:
        """Actors to let go: those furthest from serving first, and among equals the youngest."""
        order = (ActorStage.WANTED, ActorStage.STARTING, ActorStage.JOINING, ActorStage.SERVING)
        # Cancelling an actor that does not serve yet loses no work. Draining ones are leaving already.
        ranked = [name for stage in order for name in reversed(self.at(stage))]
        return ranked[: max(0, self._staying() - self.target)]

    def ask(self) -> str:
        """Add an actor; returns its name."""
        name = f"rollout-{self._asked}"
        self._asked += 1
        self._members[name] = _Member(ActorStage.WANTED, self._clock())
        return name

    def placed(self, name: str) -> None:
        """The cluster has a place for the actor; its engine starts."""
        self._move(name, ActorStage.WANTED, ActorStage.STARTING)

    def up(self, name: str) -> None:
        """The actor's engine has started."""
        self._move(name, ActorStage.STARTING, ActorStage.JOINING)

    def joined(self, name: str) -> None:
        """The actor holds the current weights, verified by their digest."""
        self._move(name, ActorStage.JOINING, ActorStage.SERVING)
        # A successful start ends the series.
        self._failures_in_a_row = 0

    def drain(self, name: str, limit_seconds: float) -> None:
        """The actor gets nothing new and has this long to finish its groups."""
        member = self._move(name, ActorStage.SERVING, ActorStage.DRAINING)
        member.drain_until_seconds = self._clock() + limit_seconds
        self._last_stopped_seconds = self._clock()

    def leave(self, name: str, why: Leave) -> None:
        """The actor has left, from any stage."""
        stage = self._members.pop(name).stage
        # A draining actor stopped serving when `drain` was called.
        if stage is ActorStage.SERVING:
            self._last_stopped_seconds = self._clock()
        self._gone[why] += 1
        # Whether it failed or was lost: a node that is too full ends whoever starts there. One that served has shown
        # that an actor can start, so its end calls for no pause.
        if why in (Leave.LOST, Leave.FAILED) and stage in (ActorStage.STARTING, ActorStage.JOINING):
            pause = min(FIRST_PAUSE_SECONDS * 2**self._failures_in_a_row, LONGEST_PAUSE_SECONDS)
            self._failures_in_a_row += 1
            self._not_before_seconds = self._clock() + pause

    def at(self, *stages: ActorStage) -> list[str]:
        """Names of the actors at these stages, in the order of `ask`."""
        return [name for name, member in self._members.items() if member.stage in stages]

    def stage(self, name: str) -> ActorStage | None:
        """The actor's stage; None when it has left."""
        member = self._members.get(name)
        return member.stage if member else None

    def seconds_at_stage(self, name: str) -> float:
        return self._clock() - self._members[name].since_seconds

    def late(self, start_limit_seconds: float) -> list[str]:
        """Names of the actors that have been starting for longer than the limit, or draining for longer than theirs."""
        now = self._clock()
        return [
            name
            for name, member in self._members.items()
            if (member.stage is ActorStage.STARTING and now - member.since_seconds > start_limit_seconds)
            or (member.drain_until_seconds is not None and now > member.drain_until_seconds)
        ]

    def empty_seconds(self) -> float:
        """Seconds since an actor last served; 0 while one does."""
        return 0.0 if self.at(ActorStage.SERVING) else self._clock() - self._last_stopped_seconds

    def counts(self) -> ActorCounts:
        """The counts; raises AssertionError when they do not add up, which only a bug can cause."""
        counts = ActorCounts(
            target=self.target,
            asked=self._asked,
            at={stage: len(self.at(stage)) for stage in ActorStage},
            gone={why: self._gone[why] for why in Leave},
            failures_in_a_row=self._failures_in_a_row,
        )
        assert counts.asked == counts.present + sum(counts.gone.values()), counts
        return counts

    def _staying(self) -> int:
        # A draining actor counts as gone, so that its replacement starts while it finishes its groups.
        return len(self._members) - len(self.at(ActorStage.DRAINING))

    def _move(self, name: str, before: ActorStage, after: ActorStage) -> _Member:
        member = self._members[name]
        assert member.stage is before, f"{name} is {member.stage}, not {before}"
        member.stage = after
        member.since_seconds = self._clock()
        return member
