"""Whose fault it is that a call of a rollout actor failed."""

from __future__ import annotations

from ray.exceptions import RayError

from medr1_ray.cluster.pending_calls import is_own_failure
from medr1_ray.rollout.actor import EngineLostError


def raised_in_health(error: RayError) -> bool:
    """Whether an actor's own code raised while its engine was there, or did not start for a reason of its own."""
    # Of an exception in a constructor Ray keeps the text alone.
    lost = isinstance(error, EngineLostError) or EngineLostError.__name__ in str(error)
    return is_own_failure(error) and not lost
