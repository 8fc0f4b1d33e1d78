"""Whose fault a failed call is."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError

from medr1_ray.pool.calls.failures import raise_if_image_is_lost, raised_in_health
from medr1_ray.rollout.actor import EngineLostError


def raised(cause: Exception) -> RayError:
    error: RayError = RayTaskError("a method", f"Traceback:\n  ...\n{cause}", cause).as_instanceof_cause()
    return error


@pytest.mark.parametrize(
    ("error", "in_health"),
    [
        (raised(ValueError("the engine refused the prompt")), True),
        (raised(EngineLostError("the engine process died")), False),
        (ActorDiedError(), False),
        (RayActorError("rollout-0", "ValueError: other code", actor_init_failed=True), True),
        (RayActorError("rollout-0", "EngineLostError: ended by SIGKILL", actor_init_failed=True), False),
    ],
)
def test_an_actor_is_in_health_where_its_own_code_raised_and_its_engine_is_there(
    error: RayError, in_health: bool
) -> None:
    assert raised_in_health(error) == in_health


def test_an_image_is_lost_where_an_actor_asked_an_encoder_that_is_gone_for_good() -> None:
    with pytest.raises(RuntimeError, match=r"^an image was lost, .*: The actor died.* go on with --resume"):
        raise_if_image_is_lost(raised(ActorDiedError()))
    # The actor itself; an encoder that starts again; the actor's own code.
    others = (ActorDiedError(), raised(ActorUnavailableError("starts again", None)), raised(ValueError("too long")))
    for error in others:
        raise_if_image_is_lost(error)
