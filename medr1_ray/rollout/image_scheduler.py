"""vLLM's schedulers, with images that survive a weight sync.

A request whose image lies in the prefix cache reaches vLLM's workers without the image. A weight sync clears that cache
under requests in flight, which are computed again from their first token; the worker then has nothing to encode, and
the engine dies (vLLM 0.32: "Expected number of multimodal embeddings to match number of input items"). It happens as
soon as a group's completions begin in different steps. Here every request brings its image along.

vLLM imports the classes by their path (`scheduler_cls`) in the engine process.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler


def scheduler_path(asynchronous: bool) -> str:
    """The import path of the class for an engine whose scheduling is asynchronous or not."""
    return f"{__name__}.{(WholeAsyncScheduler if asynchronous else WholeScheduler).__name__}"


class WholeScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, which keeps the images that it leaves out for the worker."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        return _with_images(self, super().schedule(*args, **kwargs))


class WholeAsyncScheduler(AsyncScheduler):  # type: ignore[misc]
    """The same for asynchronous scheduling, vLLM's default on a GPU."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        return _with_images(self, super().schedule(*args, **kwargs))


def _with_images(scheduler: Scheduler, output: SchedulerOutput) -> SchedulerOutput:
    for request in output.scheduled_new_reqs:
        request.mm_features = scheduler.requests[request.req_id].mm_features
    return output
