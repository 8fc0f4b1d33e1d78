"""The parity gate with stand-ins for pool and learner: each actor is held against its own completions' scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from medr1_ray.learner.messages import GroupScore
from medr1_ray.run.parity import ParityError, ParityGate
from medr1_ray.types import Completions, Prompt, Question, Sampling, ScoredPrompt, Span

QUESTION = Question("q", "/i.png", "What?", ("x", "y"), 0, "CT", "Disease Diagnosis", "d")
PROMPTS = [Prompt(f"p{i}", QUESTION, np.zeros(3, np.int32), np.zeros((2, 2, 3), np.uint8)) for i in range(2)]
LIMIT = 0.01


class _Pool:
    """Its actors sample with log-probability -1; `version` is what they say they sampled with."""

    def __init__(self, actors: Sequence[str], version: int) -> None:
        self._actors = actors
        self._version = version

    def probe(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> dict[str, list[Completions]]:
        return {
            actor: [
                Completions(
                    prompt.id,
                    actor,
                    np.zeros(2, np.int32),
                    np.full(2, -1, np.float32),
                    np.full(2, self._version, np.int32),
                    np.full(1, 2, np.int32),
                    np.zeros(1, np.bool_),
                    ("x",),
                    9,
                    Span(actor, "rollout", 0.0, 1.0),
                )
                for prompt in prompts
            ]
            for actor in self._actors
        }


class _Learner:
    """Its scores are -1 and, where `off` names an actor, that actor's completions by 0.5 less; packed or plain."""

    def __init__(self, off: str | None = None) -> None:
        self._off = off
        self.calls = 0

    def score(self, groups: Sequence[ScoredPrompt], *, plain: bool = False) -> list[GroupScore]:
        self.calls += 1
        return [
            GroupScore(np.full(2, -1.5 if completions.actor == self._off else -1, np.float32), 9)
            for _, completions in groups
        ]


def _gate(pool: _Pool, learner: _Learner) -> ParityGate:
    return ParityGate(pool, learner, PROMPTS, Sampling(2, 8, 1.0), LIMIT)  # type: ignore[arg-type]


def test_all_actors_are_scored_at_once() -> None:
    learner = _Learner()
    gap = _gate(_Pool(["rollout-0", "rollout-1", "rollout-2"], 3), learner).check(3)
    assert (gap.mean, gap.max, gap.tokens) == (0, 0, 3 * 2 * 2)
    assert learner.calls == 1


@pytest.mark.parametrize("off", ["rollout-0", "rollout-1", "rollout-2"])
def test_the_actor_that_differs_is_named(off: str) -> None:
    gate = _gate(_Pool(["rollout-0", "rollout-1", "rollout-2"], 3), _Learner(off))
    with pytest.raises(ParityError, match=rf"^{off} and the learner disagree .* 5\.00e-01 nats"):
        gate.check(3)


def test_another_version_than_the_one_to_be_served_is_refused() -> None:
    with pytest.raises(ParityError, match=r"^rollout-0 sampled with policy version \[2\]"):
        _gate(_Pool(["rollout-0"], 2), _Learner()).check(3)


def test_without_actors_nothing_is_compared() -> None:
    learner = _Learner()
    assert _gate(_Pool([], 3), learner).check(3).tokens == 0
    assert learner.calls == 0
