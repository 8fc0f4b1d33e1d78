"""Who belongs to the rollout pool, as a pure state machine: every actor that was asked for is somewhere.

    wanted ──placed──▶ starting ──up──▶ joining ──joined──▶ serving ──drain──▶ draining
       └──────────────────┴────────────────┴────────────────────┴──── leave ──────┴──▶ gone

`wanted` waits for a place in the cluster, `starting` for its engine, `joining` for the current weights. Only `serving`
members get prompts, and only members that hold the current weights serve. A name is never used twice.
Nothing here knows Ray; the clock is injected, so that tests decide what time it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Stage(Enum):
    """Where a member is."""

    WANTED = "wanted"
    STARTING = "starting"
    JOINING = "joining"
    SERVING = "serving"
    DRAINING = "draining"


class Leave(Enum):
    """Why a member is gone: it drained, it was not needed before it served, it was lost, or it failed by itself."""

    DRAINED = "drained"
    CANCELLED = "cancelled"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True)
class MembershipCounts:
    """The sums at one moment; `asked == present + gone` always holds.

    `failures_in_a_row` counts members that failed by themselves since the last one joined.
    """

    target: int
    asked: int
    at: dict[Stage, int]
    gone: dict[Leave, int]
    failures_in_a_row: int

    @property
    def present(self) -> int:
        return sum(self.at.values())

    @property
    def serving(self) -> int:
        return self.at[Stage.SERVING]

    @property
    def lost(self) -> int:
        """Those that died, failed or passed a deadline."""
        return self.gone[Leave.LOST] + self.gone[Leave.FAILED]


@dataclass
class _Member:
    stage: Stage
    since_seconds: float
    drain_until_seconds: float | None = None


class Membership:
    """The members of a pool that is to have `target` of them.

    Args:
        clock: seconds, monotonic.
        target: members that are wanted, not counting those that drain.
    """

    def __init__(self, clock: Callable[[], float], target: int) -> None:
        self._clock = clock
        self.target = target
        self._members: dict[str, _Member] = {}  # in the order in which they were asked for
        self._gone: Counter[Leave] = Counter()
        self._asked = 0
        self._failures_in_a_row = 0
        self._not_before_seconds = clock()
        self._last_stopped_seconds = clock()  # when a member last ceased to serve; at first, the beginning

    def missing(self) -> int:
        """Members to ask for now: none during the pause that follows failed starts (it doubles with each)."""
        if self._clock() < self._not_before_seconds:
            return 0
        return max(0, self.target - self._staying())

    def superfluous(self) -> list[str]:
        """Members to let go: those furthest from serving first, and of the same stage the youngest."""
        order = (Stage.WANTED, Stage.STARTING, Stage.JOINING, Stage.SERVING)
        ranked = [name for stage in order for name in reversed(self.at(stage))]
        return ranked[: max(0, self._staying() - self.target)]

    def ask(self) -> str:
        """A new member's name."""
        name = f"rollout-{self._asked}"
        self._asked += 1
        self._members[name] = _Member(Stage.WANTED, self._clock())
        return name

    def placed(self, name: str) -> None:
        """The cluster has a place for it; its engine starts."""
        self._move(name, Stage.WANTED, Stage.STARTING)

    def up(self, name: str) -> None:
        """Its engine has started."""
        self._move(name, Stage.STARTING, Stage.JOINING)

    def joined(self, name: str) -> None:
        """It holds the current weights, proven by their digest."""
        self._move(name, Stage.JOINING, Stage.SERVING)
        self._failures_in_a_row = 0

    def drain(self, name: str, limit_seconds: float) -> None:
        """It finishes what it has within the limit, and gets nothing new."""
        member = self._move(name, Stage.SERVING, Stage.DRAINING)
        member.drain_until_seconds = self._clock() + limit_seconds
        self._last_stopped_seconds = self._clock()

    def leave(self, name: str, why: Leave) -> None:
        """It is gone, from whatever stage."""
        if self._members.pop(name).stage is Stage.SERVING:
            self._last_stopped_seconds = self._clock()
        self._gone[why] += 1
        if why is Leave.FAILED:
            pause = min(FIRST_PAUSE_SECONDS * 2**self._failures_in_a_row, LONGEST_PAUSE_SECONDS)
            self._failures_in_a_row += 1
            self._not_before_seconds = self._clock() + pause

    def at(self, *stages: Stage) -> list[str]:
        """Names at these stages, in the order in which they were asked for."""
        return [name for name, member in self._members.items() if member.stage in stages]

    def stage(self, name: str) -> Stage | None:
        """Where it is; None when it is gone."""
        member = self._members.get(name)
        return member.stage if member else None

    def seconds_at_stage(self, name: str) -> float:
        return self._clock() - self._members[name].since_seconds

    def late(self, start_limit_seconds: float) -> list[str]:
        """Those that start for longer than the limit, and those that drain for longer than theirs."""
        now = self._clock()
        return [
            name
            for name, member in self._members.items()
            if (member.stage is Stage.STARTING and now - member.since_seconds > start_limit_seconds)
            or (member.drain_until_seconds is not None and now > member.drain_until_seconds)
        ]

    def empty_seconds(self) -> float:
        """For how long nobody has been serving."""
        return 0.0 if self.at(Stage.SERVING) else self._clock() - self._last_stopped_seconds

    def counts(self) -> MembershipCounts:
        """The sums; raises AssertionError when they do not add up, which only a bug can cause."""
        counts = MembershipCounts(
            target=self.target,
            asked=self._asked,
            at={stage: len(self.at(stage)) for stage in Stage},
            gone={why: self._gone[why] for why in Leave},
            failures_in_a_row=self._failures_in_a_row,
        )
        assert counts.asked == counts.present + sum(counts.gone.values()), counts
        return counts

    def _staying(self) -> int:
        return len(self._members) - len(self.at(Stage.DRAINING))

    def _move(self, name: str, before: Stage, after: Stage) -> _Member:
        member = self._members[name]
        assert member.stage is before, f"{name} is {member.stage}, not {before}"
        member.stage = after
        member.since_seconds = self._clock()
        return member
