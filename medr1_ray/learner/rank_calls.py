"""The actors of the learner ranks: starting one, and waiting for a call that all got at the same time: whose failure it
is when one does not answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from medr1_ray.cluster.pending_calls import describe_error, is_own_failure
from medr1_ray.cluster.placement import Place
from medr1_ray.cluster.resources import NotStartedError
from medr1_ray.config import Config
from medr1_ray.learner.actor import LearnerActor
from medr1_ray.learner.batching import Meanwhile, nothing
from medr1_ray.learner.messages import LearnerLateError, LearnerLostError, RankSettings

# How often the driver runs `meanwhile` (it looks after the rollout pool) while it waits for the ranks. An engine on a
# GPU answers a group every 20 ms, and has a few ahead.
_MEANWHILE_SECONDS = 0.05
# A rank that is idle answers within this time.
_IDLE_SECONDS = 0.1
# Ray tells of a dead process within this time, on a busy machine too; the ranks that it left in a collective may notice
# it earlier.
_NOTICE_SECONDS = 30.0


@dataclass(frozen=True)
class Deadline:
    """How long a call may take, by the setting that says so."""

    key: str
    seconds: float


@dataclass(frozen=True)
class Call:
    """A call of all ranks that is under way; `what` completes "still ..." in an error."""

    references: list[Any]
    what: str
    deadline: Deadline


def has_ended(call: Call) -> bool:
    """Whether all ranks have answered, or failed; ranks that are idle have the time to."""
    return not ray.wait(call.references, num_returns=len(call.references), timeout=_IDLE_SECONDS)[1]


def start_rank(config: Config, place: Place, rank: int, name: str) -> Any:
    """Start the actor of a rank in its bundle; returns Ray's handle."""
    settings = config.learner
    # Waiting threads must sleep: if they spin on cores that engines keep busy, they delay the threads they wait for.
    environment = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "passive"}
    if settings.gpus_per_rank == 0:
        environment["DS_ACCELERATOR"] = "cpu"
    options = {
        **place.options(bundle=rank),
        "name": name,
        "num_cpus": settings.cpus_per_rank,
        "num_gpus": settings.gpus_per_rank,
        "runtime_env": {"env_vars": environment},
    }
    return ray.remote(LearnerActor).options(**options).remote(RankSettings.of(config), rank, name)


def wait_for(call: Call, learner: str, meanwhile: Meanwhile = nothing) -> list[Any]:
    """Return the answers of rank 0, 1, ... of the learner of that name.

    The first failure of any rank is raised even if others are still running: one that failed leaves them in a
    collective until its timeout.

    Raises:
        LearnerLostError: a rank died or is late (`LearnerLateError`).
        NotStartedError: a rank's constructor raised.
        ValueError: a rank raised it.
        RuntimeError: a rank raised anything else.
    """
    references, deadline = call.references, call.deadline
    end = time.monotonic() + deadline.seconds
    waiting = list(references)
    while waiting:
        left = max(0.0, end - time.monotonic())
        # Returns at most one reference, so an error below belongs to the rank of `ready[0]`.
        ready, waiting = ray.wait(waiting, timeout=min(left, _MEANWHILE_SECONDS))
        meanwhile()
        if not ready and time.monotonic() >= end:
            late = ", ".join(f"{learner}-{references.index(reference)}" for reference in waiting)
            raise LearnerLateError(f"{late}: still {call.what} after {deadline.seconds:g} s ({deadline.key})")
        try:
            ray.get(ready)
        except RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise error.cause from None
            # It may have failed because another one is gone.
            for other in ray.wait(waiting, num_returns=len(waiting), timeout=_NOTICE_SECONDS)[0] if waiting else ():
                _require_alive(call, learner, other)
            name = f"{learner}-{references.index(ready[0])}"
            raise RuntimeError(f"{name} failed while {call.what}: {describe_error(error)}") from error
        # Its process or node died. One that Ray itself ends, for want of memory, dies of an OutOfMemoryError.
        except RayError:
            _require_alive(call, learner, ready[0])
    answers: list[Any] = ray.get(references)
    return answers


def _require_alive(call: Call, learner: str, reference: Any) -> None:
    """Raise LearnerLostError where the rank of a call that has ended is dead."""
    try:
        ray.get([reference])
    except RayTaskError:
        return
    except RayError as error:
        name = f"{learner}-{call.references.index(reference)}"
        if is_own_failure(error):
            raise NotStartedError(f"{name} did not start: {describe_error(error)}") from error
        raise LearnerLostError(
            f"{name} died while {call.what}: {describe_error(error)} (see logs/{name}.log in run.dir)"
        ) from error
