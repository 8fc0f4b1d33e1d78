"""Whose fault it is that a call of a rollout actor failed."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, RayError, RayTaskError

from medr1_ray.cluster.pending_calls import describe_error, is_own_failure
from medr1_ray.rollout.actor import EngineLostError


def raised_in_health(error: RayError) -> bool:
    """Whether an actor's own code raised while its engine was there, or did not start for a reason of its own."""
    # Of an exception in a constructor Ray keeps the text alone.
    lost = isinstance(error, EngineLostError) or EngineLostError.__name__ in str(error)
    return is_own_failure(error) and not lost


def raise_if_image_is_lost(error: RayError) -> None:
    """Raise RuntimeError where a call asked for an image that nobody can make any more, through no fault of the actor
    or the question: what a lost node had Ray makes again, until the encoder has been started too often."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, ActorDiedError):
        raise RuntimeError(
            f"an image was lost, and its encoder is gone for good, started again as often as may be: "
            f"{describe_error(cause)}. See Ray's logs for its deaths, and go on with --resume; encoders on nodes that "
            "last (cluster.labels.encoder) do not lose images"
        ) from error
