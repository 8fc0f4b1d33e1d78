"""Images of requests: pixels in place of references, and no long wait for one that is far away."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from medr1_ray.rollout import request_images as module
from medr1_ray.rollout.request_images import begin_fetching, most_are_fetched, with_pixels
from medr1_ray.types import Prompt, Question, StoredImage

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
QUESTION = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "d")
PROMPT = Prompt("p", QUESTION, np.array([1, 2], np.int32), PIXELS)


def stored(reference: asyncio.Future[NDArray[np.uint8]]) -> Prompt:
    return replace(PROMPT, image=StoredImage(reference, (2, 2, 3), "digest"))


def test_a_prompt_has_its_pixels_in_place_of_the_reference() -> None:
    async def test() -> None:
        reference = asyncio.get_running_loop().create_future()
        (begun,) = begin_fetching([stored(reference)])
        await asyncio.sleep(0)
        assert not begun.done()
        reference.set_result(PIXELS)
        assert (await begun).image is PIXELS
        assert await with_pixels(PROMPT) is PROMPT, "at hand already"

    asyncio.run(test())


def test_an_image_that_became_another_when_it_was_made_again_is_refused() -> None:
    async def test() -> None:
        reference = asyncio.get_running_loop().create_future()
        reference.set_result(np.zeros((0, 0, 3), np.uint8))
        with pytest.raises(ValueError, match=r"shape \(2, 2, 3\) was lost .* made again it has shape \(0, 0, 3\)"):
            await with_pixels(stored(reference))

    asyncio.run(test())


def test_one_from_far_is_not_waited_for_long_and_nothing_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SECONDS", 0.01)

    async def test() -> None:
        far = asyncio.get_running_loop().create_future()
        begun = begin_fetching([PROMPT, stored(far)])
        await most_are_fetched(begun)
        assert [each.done() for each in begun] == [True, False]
        far.set_result(PIXELS)
        await most_are_fetched(begun)
        assert begun[1].done()
        await most_are_fetched([])

    asyncio.run(asyncio.wait_for(test(), timeout=60))
