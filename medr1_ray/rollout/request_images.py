"""The images of requests, fetched into the actor before the call that brought them is answered. asyncio only.

A reference that an actor still holds when it answers costs the driver, which owns the image, a quarter millisecond of
bookkeeping and a message when it is gone; one that it has let go costs nothing (docs/performance.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

from medr1_ray.types import Prompt, StoredImage

_MOST_SECONDS = 0.1


async def with_pixels(prompt: Prompt) -> Prompt:
    """The prompt with its pixels in place of a reference to them; other calls go on in the meantime."""
    image = prompt.image
    if not isinstance(image, StoredImage):
        return prompt
    return replace(prompt, image=image.checked(await image.reference))


def begin_fetching(prompts: Iterable[Prompt]) -> list[asyncio.Task[Prompt]]:
    """Begin to fetch the images of prompts (`with_pixels`)."""
    begun = [asyncio.ensure_future(with_pixels(prompt)) for prompt in prompts]
    for each in begun:
        # Looked at, so that asyncio does not complain of an error in one whose group was cancelled before it began.
        each.add_done_callback(lambda done: done.cancelled() or done.exception())
    return begun


async def most_are_fetched(prompts: Sequence[asyncio.Task[Prompt]]) -> None:
    """Wait for all, but not long: one that comes from far must not hold up the answers to others."""
    if prompts:
        await asyncio.wait(prompts, timeout=_MOST_SECONDS)
