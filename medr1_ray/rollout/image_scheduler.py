"""vLLM's schedulers, changed so that images survive a weight sync.

vLLM sends a request to its workers without its image when the image's tokens are in the prefix cache. A weight sync
clears that cache, and requests in flight are recomputed from their first token; the worker then has no image to encode,
and the engine dies (vLLM 0.32: "Expected number of multimodal embeddings to match number of input items"). This happens
as soon as the completions of a group start in different steps. Here every request carries its image.

vLLM imports the classes by their path (`scheduler_cls`) in the engine process.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler


def scheduler_path(asynchronous: bool) -> str:
    """The import path of the class for asynchronous or synchronous scheduling."""
    return f"{__name__}.{(WholeAsyncScheduler if asynchronous else WholeScheduler).__name__}"


class WholeScheduler(Scheduler):
    """vLLM's scheduler, with the images that it would leave out for the worker."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        return _with_images(self, super().schedule(*args, **kwargs))


class WholeAsyncScheduler(AsyncScheduler):
    """The same for asynchronous scheduling, vLLM's default on a GPU."""

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        return _with_images(self, super().schedule(*args, **kwargs))


def _with_images(scheduler: Scheduler, output: SchedulerOutput) -> SchedulerOutput:
    # The scheduler's own request keeps the pixels that vLLM left out of the message (`strip_covered_mm_data`).
    for request in output.scheduled_new_reqs:
        request.mm_features = scheduler.requests[request.req_id].mm_features
    return output
