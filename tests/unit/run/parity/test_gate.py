"""The parity gate with plain numbers for engines and learner: each actor is held against its own tokens' scores."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from medr1_ray.learner.messages import Gap
from medr1_ray.run.parity.gate import ParityError, ParityGate, require_small_gap
from medr1_ray.types import Sampling
from tests.unit.run.probed_policy import PROMPTS, Engine, Policy

LIMIT = 0.01


def a_gate(policy: Policy, say: Callable[[str], None] = print) -> ParityGate:
    both: Any = policy
    return ParityGate(both, both, PROMPTS, Sampling(1, 8, 1.0), LIMIT, say)


def actors(count: int, **wrong: Engine) -> dict[str, Engine]:
    return {f"rollout-{i}": Engine() for i in range(count)} | {name.replace("_", "-"): it for name, it in wrong.items()}


def after_the_first_update(policy: Policy, say: Callable[[str], None] = print) -> ParityGate:
    """A gate that has waited for all actors at versions 0 and 1."""
    gate = a_gate(policy, say)
    for policy.version in (0, 1):
        gate.check(policy.version)
    return gate


def follow(gate: ParityGate, policy: Policy) -> Gap:
    """At the sync after the learner's next update."""
    policy.version += 1
    return gate.follow(policy.version)


def test_all_actors_are_scored_at_once() -> None:
    policy = Policy(engines=actors(3))
    gap = a_gate(policy).check(0)
    assert (gap.mean, gap.max, gap.tokens) == (0, 0, 3 * 2 * 10)
    assert policy.scored == [3 * 2]
    assert policy.polls == 1, "training's groups go on while the learner scores"


@pytest.mark.parametrize("off", ["rollout_0", "rollout_1", "rollout_2"])
def test_the_actor_that_differs_is_named(off: str) -> None:
    gate = a_gate(Policy(engines=actors(3, **{off: Engine(off=0.5)})))
    with pytest.raises(ParityError, match=rf"^{off.replace('_', '-')} and the learner disagree .* 5\.00e-01 nats"):
        gate.check(0)


@pytest.mark.parametrize(
    ("engine", "packing", "distances", "side"),
    [
        (0.5, 0.0, r"engine differs by 5\.00e-01, the packed learner by 0\.00e\+00", r"the engine"),
        (0.0, 0.5, r"engine differs by 0\.00e\+00, the packed learner by 5\.00e-01", r"the learner's .* packing"),
    ],
)
def test_plain_rows_of_the_learner_tell_which_side_differs(
    engine: float, packing: float, distances: str, side: str
) -> None:
    gate = a_gate(Policy(engines=actors(1, rollout_0=Engine(off=engine)), packing_off=packing))
    said = rf"by 5\.00e-01 nats in the mean and 5\.00e-01 at most .*{distances}: it is {side} that differs"
    with pytest.raises(ParityError, match=said):
        gate.check(0)


def test_a_gap_of_up_to_the_limit_passes_and_is_reported() -> None:
    policy = Policy(engines=actors(2, rollout_1=Engine(off=LIMIT * 0.999)))
    gap = a_gate(policy).check(0)
    assert (gap.mean, gap.max, gap.tokens) == (pytest.approx(LIMIT / 2, rel=0.01), pytest.approx(LIMIT, rel=0.01), 40)
    assert policy.scored == [2 * 2], "no plain rows"


def test_another_number_of_visual_tokens_is_refused() -> None:
    with pytest.raises(ParityError, match=r"^rollout-0 made 9 visual tokens of the image of 'p0', the learner 4"):
        a_gate(Policy(engines=actors(1), visual_tokens=4)).check(0)


def test_another_version_than_the_one_to_be_served_is_refused() -> None:
    policy = Policy(engines=actors(1))
    policy.probe = lambda prompts, sampling, version: {  # type: ignore[method-assign]
        "rollout-0": policy._sample("rollout-0", prompts, version - 1, version)
    }
    policy.engines["rollout-0"].late_from = 7
    with pytest.raises(ParityError, match=r"^rollout-0 sampled with policy version \[2, 3\] where only 3"):
        a_gate(policy).check(3)


def test_nobody_waits_for_actors_that_are_followed() -> None:
    policy = Policy(step=0.05, engines=actors(2))
    gate = after_the_first_update(policy)
    policy.scored.clear()
    gaps = [follow(gate, policy) for _ in range(4)]
    assert policy.probes == [0, 1], "those of the two checks"
    assert policy.scored == [2] * 4, "one group for each prompt, however many actors"
    # At the first nothing was asked yet; then the two prompts of one actor, over which the learner has moved on: what
    # it scored at the answer's version counts.
    assert [gap.tokens for gap in gaps] == [0, 20, 20, 20]
    assert max(gap.max for gap in gaps) < 1e-6


@pytest.mark.parametrize("count", [1, 2, 8, 9, 20])
def test_every_actor_is_compared_within_eight_syncs(count: int) -> None:
    policy = Policy(engines=actors(count))
    gate = after_the_first_update(policy)
    for _ in range(24):
        follow(gate, policy)
    at_once = -(-count // 8)
    assert {len(names) for names in policy.asked} == {at_once}
    for name in policy.engines:
        at = [sync for sync, names in enumerate(policy.asked) if name in names]
        assert at[0] < 8
        assert max(later - earlier for earlier, later in pairwise(at)) <= 8


def test_an_actor_that_joins_is_asked_at_the_next_sync() -> None:
    policy = Policy(engines=actors(9))
    gate = after_the_first_update(policy)
    policy.engines |= {"rollout-9": Engine(), "rollout-10": Engine(), "rollout-11": Engine()}
    follow(gate, policy)
    assert policy.asked == [["rollout-10", "rollout-11", "rollout-9"]]
    follow(gate, policy)
    assert not {"rollout-9", "rollout-10", "rollout-11"} & set(policy.asked[-1]), "they have been compared"


def test_who_has_not_answered_yet_is_not_asked_again_and_holds_up_nobody() -> None:
    policy = Policy(step=0.05, engines=actors(2))
    gate = after_the_first_update(policy)
    policy.answering = {"rollout-1"}
    for _ in range(5):
        follow(gate, policy)
    assert policy.asked == [["rollout-0"], ["rollout-1"], ["rollout-1"], ["rollout-1"], ["rollout-1"]]
    policy.answering = None
    # Its version has been passed five times by now, and is known.
    assert follow(gate, policy).tokens == 40
    assert follow(gate, policy).max < 1e-6


def test_an_answer_of_a_version_that_is_no_longer_known_does_not_count() -> None:
    policy = Policy(engines=actors(2))
    gate = after_the_first_update(policy)
    policy.answering = {"rollout-1"}
    follow(gate, policy)
    policy.engines["rollout-1"] = Engine(differs_from=4)
    for _ in range(2):
        follow(gate, policy)
    assert policy.probes == [0, 1, 4], "new tokens, scored at version 4 for the first time"
    policy.answering = None
    assert follow(gate, policy).tokens == 0
    assert policy.asked == [["rollout-0"], ["rollout-1"], ["rollout-0"]], "once more"


def test_each_token_is_compared_under_its_own_version() -> None:
    """Where weights were loaded in the middle of the answer."""
    policy = Policy(step=0.05, engines=actors(1, rollout_0=Engine(late_from=4)))
    gate = a_gate(policy)
    gate.check(0)
    gaps = [follow(gate, policy) for _ in range(3)]
    assert [gap.tokens for gap in gaps] == [0, 20, 20]
    assert max(gap.max for gap in gaps) < 1e-6


@pytest.mark.parametrize("wrong", [Engine(off=0.5), Engine(off=float("nan"))])
def test_an_actor_that_goes_wrong_on_the_way_is_found_and_named(wrong: Engine) -> None:
    said: list[str] = []
    policy = Policy(engines=actors(2))
    gate = after_the_first_update(policy, said.append)
    policy.engines["rollout-1"] = wrong
    for _ in range(2):
        follow(gate, policy)
    with pytest.raises(ParityError, match=r"^rollout-1 and the learner disagree at policy version 4"):
        follow(gate, policy)
    assert len(said) == 1
    assert "rollout-1 differs from the learner by" in said[0]


def test_an_actor_that_samples_other_tokens_is_checked_by_its_own() -> None:
    """As every actor does once the policy has moved far from the probe, or one whose weights are wrong."""
    said: list[str] = []
    policy = Policy(engines=actors(2))
    gate = after_the_first_update(policy, said.append)
    policy.engines = actors(2, rollout_0=Engine(differs_from=4), rollout_1=Engine(differs_from=4))
    follow(gate, policy)
    assert policy.probes == [0, 1]
    follow(gate, policy)
    assert policy.probes == [0, 1, 3], "less than half of the tokens are known"
    for _ in range(8):
        follow(gate, policy)
    assert policy.probes == [0, 1, 3], "they share the new ones"
    policy.engines["rollout-0"] = Engine(differs_from=1, off=0.5)
    follow(gate, policy)
    with pytest.raises(ParityError, match=r"^rollout-0 and the learner disagree at policy version 13"):
        follow(gate, policy)
    assert said == []


def test_a_stale_engine_is_refused_after_the_first_update_though_its_gap_is_under_the_limit() -> None:
    policy = Policy(step=LIMIT / 5, engines=actors(2))
    gate = a_gate(policy)
    gap = gate.check(0)
    policy.engines["rollout-1"] = Engine(behind=1)
    assert gap.mean == 0, "at the start what it serves is right"
    policy.version = 1
    said = (
        r"^rollout-1 claims to serve policy version 1 and is nearer to version 0: over 20 tokens it differs from the "
        r"learner by 0\.00e\+00 nats in the mean at version 0, by 2\.00e-03 at version 1, and these two by 2\.00e-03 "
        r"from each other\. Its last weight sync did not take effect$"
    )
    with pytest.raises(ParityError, match=said):
        gate.check(1)


@pytest.mark.parametrize("behind", [1, 3])
def test_an_engine_that_becomes_stale_is_refused_though_its_gap_is_under_the_limit(behind: int) -> None:
    said: list[str] = []
    policy = Policy(step=LIMIT / 5, engines=actors(2))
    gate = after_the_first_update(policy, said.append)
    for _ in range(3):
        follow(gate, policy)
    assert policy.version == 4
    policy.engines["rollout-0"] = Engine(behind=behind)
    # It was asked at version 4, is asked again at 6 (the other at 5), and its answer is looked at at 7.
    for _ in range(2):
        follow(gate, policy)
    with pytest.raises(ParityError, match=r"^rollout-0 claims .* version \d and is nearer to version \d: "):
        follow(gate, policy)
    (line,) = said
    assert re.match(r"parity gate: rollout-0 claims .* all actors are compared once more$", line)


def test_an_engine_that_was_stale_once_is_told_of_and_ends_no_run() -> None:
    said: list[str] = []
    policy = Policy(step=LIMIT / 5, engines=actors(1))
    gate = after_the_first_update(policy, said.append)
    policy.engines["rollout-0"].behind = 1
    follow(gate, policy)
    policy.engines["rollout-0"].behind = 0
    for _ in range(4):
        follow(gate, policy)
    (line,) = said
    assert "rollout-0 claims to serve policy version 2 and is nearer to version 1" in line
    assert policy.probes == [0, 1, 3]


@pytest.mark.parametrize("off", [0.0, LIMIT / 20, LIMIT / 2])
def test_rounding_of_less_or_more_than_a_step_is_not_staleness(off: float) -> None:
    policy = Policy(step=LIMIT / 5, engines=actors(2, rollout_0=Engine(off=off), rollout_1=Engine(off=-off)))
    gate = after_the_first_update(policy)
    for _ in range(20):
        follow(gate, policy)
    assert policy.probes == [0, 1]


def test_a_steps_gap_above_the_limit_is_refused() -> None:
    require_small_gap(Gap(0.01, 1.0, 5), 0.01, 3)
    said = r"^step 3: .* differ from the learner's by 1\.10e-02 nats in the mean, over 5 tokens"
    with pytest.raises(ParityError, match=said):
        require_small_gap(Gap(0.011, 1.0, 5), 0.01, 3)
    with pytest.raises(ParityError, match="by nan nats"):
        require_small_gap(Gap(float("nan"), 1.0, 5), 0.01, 3)
