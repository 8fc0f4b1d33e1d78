"""Many hundred random schedules of faults, on a pool whose actors are stand-ins in simulated time.

After each: every group that was issued was used once, dropped for a counted reason, or is in flight; versions never go
back; no token is staler than allowed; and the run ends, with its steps done or with an error of ours.
`python -m tests.unit.pool.test_random_schedules 20000` tries as many as one likes.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from medr1_ray.learner.batching import nothing
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.run.weight_sync import BroadcastSync, WeightSync
from medr1_ray.weights.messages import WeightUpdate
from tests.unit.pool.world import World, a_config, a_stream, install, reward_actors
from tests.unit.run.test_weight_sync import Both

STEPS, GROUPS = 8, 4
KINDS = (
    *("dies", "hangs", "engine dies", "node drains", "node is full"),
    *("loads slowly", "generates slowly", "wanted", "deadly question", "reward actor dies"),
)
# Errors of ours that such schedules may end in.
ENDS = ("no rollout actor has been serving for", "no place for rollout-", "policy version ")
# Simulated. With all deadlines of `a_config` (10 to 30 s) and so few faults a run is done or lost long before.
ENDLESS_SECONDS = 5_000.0


@dataclass(frozen=True)
class Fault:
    """What happens at a moment; `which` chooses the actor, the question or the number that it is about."""

    at_seconds: float
    kind: str
    which: int
    seconds: float


@dataclass(frozen=True)
class Schedule:
    max_staleness: int
    actors: int
    spare: int
    passing: bool  # weights that do not last, by broadcast
    faults: tuple[Fault, ...]


FAULTS = st.builds(
    Fault,
    at_seconds=st.floats(0, 60),
    kind=st.sampled_from(KINDS),
    which=st.integers(0, 7),
    # Less than a step takes, less than any deadline, and more than all of them.
    seconds=st.one_of(st.floats(0.1, 4), st.floats(4, 40), st.floats(40, 60)),
)
SCHEDULES = st.builds(
    Schedule,
    max_staleness=st.integers(0, 3),
    actors=st.integers(1, 4),
    spare=st.integers(0, 2),
    passing=st.booleans(),
    faults=st.lists(FAULTS, max_size=12).map(tuple),
)


class Publishing(Both):
    """A learner that publishes, for an update that lasts or one that does not."""

    def __init__(self, *, lasting: bool) -> None:
        super().__init__()
        self._lasting = lasting

    def publish_weights(  # type: ignore[override]
        self, version: int, *, to_newcomers: bool = True, meanwhile: Callable[[], None] = nothing
    ) -> WeightUpdate:
        meanwhile()
        return WeightUpdate(version, (), f"digest {version}", lasting=self._lasting)


class Faults:
    """Lets the faults of a schedule happen when their time has come."""

    def __init__(self, world: World, faults: tuple[Fault, ...]) -> None:
        self._world = world
        self._coming = sorted(faults, key=lambda fault: fault.at_seconds)
        self._until: list[tuple[float, int]] = []
        self._hangs_until: dict[str, float] = {}
        self.pool: RolloutPool | None = None

    def happen(self) -> None:
        world = self._world
        assert world.now < ENDLESS_SECONDS, "the run neither ends nor goes on"
        while self._until and self._until[0][0] <= world.now:
            world.places += self._until.pop(0)[1]
        for name in [name for name, end in self._hangs_until.items() if end <= world.now]:
            # Its answers come after all, perhaps long after it was given up.
            del self._hangs_until[name]
            world.silent.discard(name)
        while self._coming and self._coming[0].at_seconds <= world.now:
            self._happen(self._coming.pop(0))

    def _happen(self, fault: Fault) -> None:
        world, pool = self._world, self.pool
        assert pool is not None
        if fault.kind == "node is full":
            world.places -= 6
            self._until = sorted([*self._until, (world.now + fault.seconds, 6)])
        elif fault.kind == "wanted":
            pool.scale(1 + fault.which % 4, "of the schedule")
        elif fault.kind == "reward actor dies":
            world.dead.update(pool._reward_actors._members)
        elif fault.kind == "deadly question":
            world.deadly.add(f"q{fault.which}")
        elif pool.rollout_names:
            name = pool.rollout_names[fault.which % len(pool.rollout_names)]
            if fault.kind == "node drains":
                world.draining[f"node of {name}"] = fault.seconds
            elif fault.kind == "generates slowly":
                world.group_seconds_of[name] = fault.seconds
            elif fault.kind == "loads slowly":
                world.load_seconds_of[name] = fault.seconds
            elif fault.kind == "hangs":
                world.silent.add(name)
                self._hangs_until[name] = world.now + fault.seconds
            else:
                {"dies": world.dead, "engine dies": world.engine_dead}[fault.kind].add(name)


def run(schedule: Schedule, folder: Path) -> str:
    """Run the steps under the schedule; returns how it ended: `done`, or the first words of the error."""
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        install(world, patch)
        patch.setattr("medr1_ray.pool.groups.time.monotonic", lambda: world.now)
        patch.setattr("medr1_ray.run.weight_sync.break_off", lambda address: None)
        train = {
            "steps": STEPS,
            "prompts_per_step": GROUPS,
            "group_size": 4,
            "max_staleness": schedule.max_staleness,
        }
        most = schedule.actors + schedule.spare
        config = a_config(
            train, engine={"max_num_seqs": 8}, actors=schedule.actors, min_actors=1, max_actors=max(most, 4)
        )
        config = config.model_copy(
            update={
                "run": config.run.model_copy(update={"dir": folder}),
                # Long enough that others take several steps while one is slow: its groups are too old then.
                "cluster": config.cluster.model_copy(update={"rollout_timeout_seconds": 40.0}),
                "reward": config.reward.model_copy(update={"on_error": "drop"}),
            }
        )
        actors = RolloutActors(config, world, world.said.append, world.launch, lambda: world.now)
        ledger = Ledger(lambda: world.now)
        pool = RolloutPool(config, actors, reward_actors(world, config), a_stream(100), ledger)
        faults = Faults(world, schedule.faults)
        faults.pool = pool
        learner = Publishing(lasting=not schedule.passing)
        sync: WeightSync = (BroadcastSync if schedule.passing else WeightSync)(learner, pool)  # type: ignore[arg-type]
        actors.wait_until_up()
        sync.sync(0)
        world.happens = faults.happen
        used: list[str] = []
        ended = "done"
        try:
            for version in range(STEPS):
                if version:
                    sync.sync(version)
                groups = pool.take(version)
                for group in groups:
                    versions = group.completions.versions
                    assert 0 <= version - int(versions.min()) <= schedule.max_staleness
                    assert int(versions.max()) <= version
                used += [group.prompt.id for group in groups]
                pool.fill(versions_ahead=1)
                for _ in range(4):  # an update
                    pool.poll(0.5)
        except RuntimeError as error:
            ended = str(error)
            assert ended.startswith(ENDS)
        counts = ledger.counts()
        assert len(set(used)) == len(used) == counts.used
        assert counts.issued == counts.used + sum(counts.dropped.values()) + counts.in_flight
        assert counts.in_flight == len(pool.unused_prompt_ids())
        members = pool.actor_counts()
        assert members.asked == members.present + sum(members.gone.values())
        assert ended != "done" or len(used) == STEPS * GROUPS
        return ended


@settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(schedule=SCHEDULES)
def test_whatever_happens_the_books_add_up_and_the_run_ends(schedule: Schedule) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(schedule, Path(folder))


def test_without_faults_every_run_is_done(tmp_path: Path) -> None:
    for staleness in range(4):
        for passing in (False, True):
            assert run(Schedule(staleness, 2, 0, passing, ()), tmp_path) == "done"


if __name__ == "__main__":
    ends: Counter[str] = Counter()

    @settings(
        max_examples=int(sys.argv[1]), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(schedule=SCHEDULES)
    def many(schedule: Schedule) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ends[" ".join(run(schedule, Path(folder)).split()[:5])] += 1

    many()
    for how, number in ends.most_common():
        print(f"{number:6}  {how}")
