"""What is said of a call that failed."""

from ray.exceptions import RayActorError, RayTaskError

from medr1_ray.cluster.pending_calls import describe_error

# As Ray 2.60 words it, its advice shortened.
KILLED_FOR_MEMORY = """The actor died unexpectedly before finishing this task.
2 worker(s) were killed due to the node running low on memory.
OOM kill reason: Memory usage 24029642752B exceeded threshold of 24012259328B (95.0% of 25276063744B limit)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io. To adjust the kill threshold,
set the environment variable `RAY_memory_usage_threshold` when starting Ray."""


def test_an_actor_killed_for_memory_is_said_to_be_without_a_page_of_advice() -> None:
    said = describe_error(RayActorError("", KILLED_FOR_MEMORY))
    assert said.startswith("Ray killed it because its node ran out of memory: Memory usage 24029642752B exceeded")
    assert "Refer to" not in said


def test_of_a_traceback_the_exception_is_said() -> None:
    error = RayTaskError("generate", "Traceback (most recent call last):\n  ...\nValueError: too long", ValueError("x"))
    assert describe_error(error) == "ValueError: too long"
