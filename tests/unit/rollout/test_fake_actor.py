"""The stand-in of simulations: it must do what the real actor does, where the pool can tell."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import numpy as np
import pytest

from medr1_ray.config import RolloutSettings
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.rollout.actor import NotServingError
from medr1_ray.rollout.fake_actor import FakeBehaviour, FakeRolloutActor
from medr1_ray.types import Completions, GroupRequest, Prompt, Question, Sampling
from medr1_ray.weights.messages import WeightUpdate

QUESTION = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "d")
PROMPT = Prompt("p", QUESTION, np.zeros(4, np.int32), np.zeros((28, 28, 3), np.uint8))


def update(version: int) -> WeightUpdate:
    return WeightUpdate(version, (), f"digest {version}")


async def generate(made: FakeRolloutActor, *names: str) -> list[Completions]:
    """All of these groups, in a call that takes them there and as many as it takes to have them."""
    found = await made.generate([GroupRequest(name, PROMPT, Sampling(4, 8, 1.0)) for name in names])
    while len(found) < len(names):
        found += await made.generate([])
    return [completions for _, completions in found]


def actor(sequences: int = 8, index: int = 0, **behaviour: Any) -> FakeRolloutActor:
    rollout = RolloutSettings(engine={"max_num_seqs": sequences})
    return FakeRolloutActor(rollout, 4, index, FakeBehaviour(**{"group_seconds": 0.05, **behaviour}))


def test_it_answers_with_options_in_the_right_form_and_with_its_version() -> None:
    async def ask() -> Any:
        made = actor(index=3)
        report = await made.load_weights(update(7))
        assert (report.version, report.digest) == (7, "digest 7")
        (found,) = await generate(made, "r")
        return found

    found = asyncio.run(ask())
    assert (found.prompt_id, found.actor, set(found.versions)) == ("p", "rollout-3", {7})
    assert found.token_ids.size == found.rollout_logprobs.size == found.versions.size == found.lengths.sum()
    assert len(found.texts) == found.lengths.size == found.truncated.size == 4
    assert {parse_answer(text, QUESTION, "no_think").letter for text in found.texts} <= {"A", "B"}


def test_it_serves_nothing_before_weights_and_after_a_run() -> None:
    async def ask() -> None:
        made = actor()
        for _ in range(2):
            with pytest.raises(NotServingError, match="rollout-0 serves nothing"):
                await generate(made, "r")
            assert (await made.status()).version is None
            assert (await made.status()).failure is not None
            await made.load_weights(update(1))
            assert (await made.status()).version == 1
            assert (await made.status()).failure is None
            await made.forget_run()

    asyncio.run(ask())


@pytest.mark.parametrize(("sequences", "rounds"), [(4, 4), (8, 2), (16, 1), (2, 4)])
def test_it_generates_as_many_groups_at_once_as_an_engine(sequences: int, rounds: int) -> None:
    """Four groups of four: one at a time where an engine samples 4 (or fewer) sequences, two where it samples 8."""

    async def ask() -> float:
        made = actor(sequences)
        await made.load_weights(update(0))
        start = time.monotonic()
        call = asyncio.create_task(generate(made, *"abcd"))
        await asyncio.sleep(0)  # each has begun, and none has ended, however long that took
        assert (await made.status()).running_requests == 4
        assert len(await call) == 4
        assert (await made.status()).running_requests == 0
        return time.monotonic() - start

    assert asyncio.run(ask()) >= rounds * 0.05


def test_faults_come_at_the_versions_that_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        raise ChildProcessError

    monkeypatch.setattr(os, "_exit", end)

    async def load(made: FakeRolloutActor, version: int, seconds: float | None = None) -> Any:
        return await asyncio.wait_for(made.load_weights(update(version)), seconds)

    with pytest.raises(ChildProcessError):
        actor(dies_starting=True)
    made = actor(dies_loading=2, hangs_loading=3, wrong_digest=4)
    assert asyncio.run(load(made, 1)).digest == "digest 1"
    with pytest.raises(ChildProcessError):
        asyncio.run(load(made, 2))
    assert ended == [137, 137]
    with pytest.raises(TimeoutError):
        asyncio.run(load(made, 3, seconds=0.2))
    assert asyncio.run(load(made, 4)).digest != "digest 4"
