"""The parity gate with stand-ins for pool and learner: each actor is held against its own completions' scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from medr1_ray.learner.messages import GroupLogprobs
from medr1_ray.run.parity import ParityError, ParityGate
from medr1_ray.types import CompletedPrompt, Completions, Prompt, Question, Sampling, Span

QUESTION = Question("q", "/i.png", "What?", ("x", "y"), 0, "CT", "Disease Diagnosis", "d")
PROMPTS = [Prompt(f"p{i}", QUESTION, np.zeros(3, np.int32), np.zeros((2, 2, 3), np.uint8)) for i in range(2)]
LIMIT = 0.01


class _Pool:
    """Its actors sample two tokens with log-probability -1; `versions` are what they say they sampled them with."""

    def __init__(self, actors: Sequence[str], version: int, first: int | None = None) -> None:
        self._actors = actors
        self._versions = np.array([version if first is None else first, version], np.int32)
        self.polls = 0

    def poll(self) -> None:
        self.polls += 1

    def probe(self, prompts: Sequence[Prompt], sampling: Sampling, version: int) -> dict[str, list[Completions]]:
        return {
            actor: [
                Completions(
                    prompt.id,
                    actor,
                    np.zeros(2, np.int32),
                    np.full(2, -1, np.float32),
                    self._versions,
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
    """Its scores are -1 and, where `off` names an actor, those of the second token of its completions 1 less; in packed
    rows, and where `plainly` is set also in plain ones."""

    def __init__(self, off: str | None = None, *, plainly: bool = True, visual_tokens: int = 9) -> None:
        self._off = off
        self._plainly = plainly
        self._visual_tokens = visual_tokens
        self.calls = 0

    def logprobs(
        self, groups: Sequence[CompletedPrompt], *, plain: bool = False, meanwhile: Callable[[], None]
    ) -> list[GroupLogprobs]:
        self.calls += 1
        meanwhile()
        wrong = self._plainly or not plain
        return [
            GroupLogprobs(
                np.array([-1, -2 if wrong and completions.actor == self._off else -1], np.float32), self._visual_tokens
            )
            for _, completions in groups
        ]


def _gate(pool: _Pool, learner: _Learner) -> ParityGate:
    return ParityGate(pool, learner, PROMPTS, Sampling(2, 8, 1.0), LIMIT)  # type: ignore[arg-type]


def test_all_actors_are_scored_at_once() -> None:
    learner, pool = _Learner(), _Pool(["rollout-0", "rollout-1", "rollout-2"], 3)
    gap = _gate(pool, learner).check(3)
    assert (gap.mean, gap.max, gap.tokens) == (0, 0, 3 * 2 * 2)
    assert learner.calls == 1
    assert pool.polls == 1, "training's groups go on while the learner scores"


@pytest.mark.parametrize("off", ["rollout-0", "rollout-1", "rollout-2"])
def test_the_actor_that_differs_is_named(off: str) -> None:
    gate = _gate(_Pool(["rollout-0", "rollout-1", "rollout-2"], 3), _Learner(off))
    with pytest.raises(ParityError, match=rf"^{off} and the learner disagree .* 5\.00e-01 nats"):
        gate.check(3)


@pytest.mark.parametrize(
    ("plainly", "distances", "side"),
    [
        # The learner's plain rows are off as the packed ones are, by 1 for every other token: so the engine differs.
        (True, r"engine differs by 5\.00e-01, the packed learner by 0\.00e\+00", r"the engine"),
        (False, r"engine differs by 0\.00e\+00, the packed learner by 5\.00e-01", r"the learner's .* packing"),
    ],
)
def test_plain_rows_of_the_learner_tell_which_side_differs(plainly: bool, distances: str, side: str) -> None:
    gate = _gate(_Pool(["rollout-0"], 3), _Learner("rollout-0", plainly=plainly))
    said = rf"by 5\.00e-01 nats in the mean and 1\.00e\+00 at most .*{distances}: it is {side} that differs"
    with pytest.raises(ParityError, match=said):
        gate.check(3)


def test_a_gap_of_exactly_the_limit_passes_and_is_reported() -> None:
    learner = _Learner("rollout-1")
    gate = ParityGate(_Pool(["rollout-0", "rollout-1"], 3), learner, PROMPTS, Sampling(2, 8, 1.0), 0.5)  # type: ignore[arg-type]
    gap = gate.check(3)
    # Of eight tokens two are off by 1.
    assert (gap.mean, gap.max, gap.tokens) == (0.25, 1.0, 8)
    assert learner.calls == 1


def test_another_number_of_visual_tokens_is_refused() -> None:
    with pytest.raises(ParityError, match=r"^rollout-0 made 9 visual tokens of the image of 'p0', the learner 4"):
        _gate(_Pool(["rollout-0"], 3), _Learner(visual_tokens=4)).check(3)


@pytest.mark.parametrize(("first", "said"), [(2, r"\[2\]"), (3, r"\[2, 3\]")])
def test_another_version_than_the_one_to_be_served_is_refused(first: int, said: str) -> None:
    with pytest.raises(ParityError, match=rf"^rollout-0 sampled with policy version {said} where only 3"):
        _gate(_Pool(["rollout-0"], 2, first), _Learner()).check(3)


def test_without_actors_nothing_is_compared() -> None:
    learner = _Learner()
    assert _gate(_Pool([], 3), learner).check(3).tokens == 0
    assert learner.calls == 0
