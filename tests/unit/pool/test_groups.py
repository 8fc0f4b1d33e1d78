"""The pool and its actors without Ray: whatever happens to actors, every step gets its groups and the books add up."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from medr1_ray.config import LossSettings
from medr1_ray.data.stream import PromptStream
from medr1_ray.pool import groups as module
from medr1_ray.pool import workload as workload_module
from medr1_ray.pool.actor_states import Leave
from medr1_ray.pool.actors import RolloutActors
from medr1_ray.pool.group_ledger import GroupStage, Ledger
from medr1_ray.pool.groups import RolloutPool
from medr1_ray.pool.incidents import Incidents
from medr1_ray.rewards.functions import RewardError
from medr1_ray.types import Prompt, Question, Sampling
from medr1_ray.weights.messages import WeightUpdate
from tests.unit.pool.world import (
    QUESTION,
    Encoder,
    RewardActor,
    World,
    a_config,
    a_stream,
    install,
    reward_actors,
    update,
)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    install(world, monkeypatch)
    monkeypatch.setattr("medr1_ray.pool.groups.time.monotonic", lambda: world.now)
    return world


def a_pool(
    world: World,
    max_staleness: int = 0,
    rewards: Sequence[RewardActor] = (),
    train: Mapping[str, Any] | None = None,
    reward: Mapping[str, Any] | None = None,
    questions: int = 1,
    run: Mapping[str, Any] | None = None,
    **rollout: Any,
) -> tuple[RolloutActors, RolloutPool]:
    steps = {"steps": 100, "prompts_per_step": 6, "group_size": 4, "max_staleness": max_staleness, **(train or {})}
    config = a_config(steps, engine={"max_num_seqs": 8}, **rollout)
    config = config.model_copy(
        update={
            "reward": config.reward.model_copy(update=reward or {}),
            "run": config.run.model_copy(update=run or {}),
        }
    )
    actors = RolloutActors(config, world, world.said.append, world.launch, lambda: world.now)
    ledger = Ledger(lambda: world.now)
    pool = RolloutPool(config, actors, reward_actors(world, config, *rewards), a_stream(questions), ledger)
    actors.wait_until_up()
    pool.load_weights(update(0))
    return actors, pool


def actors_of(groups: Any) -> Counter[str]:
    return Counter(group.completions.actor for group in groups)


def test_an_actor_gets_no_more_than_its_engine_samples_at_once(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    assert pool.ledger.load_of(pool.rollout_names) == {"rollout-0": 2, "rollout-1": 2}, "8 sequences; 2 groups wait"
    assert len(pool.take(0)) == 6


def test_groups_scored_while_prompts_are_drawn_are_not_taken_before_they_are_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pool = a_pool(world, max_staleness=1, actors=2)
    pool.fill(versions_ahead=0)
    fill = pool.fill

    def slow(versions_ahead: int) -> None:
        # A wait for an encoder, in which the pool goes on.
        while len(pool.ledger.at(GroupStage.READY)) < 6:
            pool.poll(1.0)
        fill(versions_ahead)

    monkeypatch.setattr(pool, "fill", slow)
    pool.load_weights(update(5))
    taken = pool.take(5)
    assert {int(version) for group in taken for version in group.completions.versions} <= {4, 5}
    assert pool.ledger.counts().dropped["stale"] > 0


def test_an_actor_gets_a_few_groups_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUPS_AHEAD", 1)
    _, pool = a_pool(world, max_staleness=1, actors=2)
    pool.fill(versions_ahead=0)
    assert pool.ledger.load_of(pool.rollout_names) == {"rollout-0": 3, "rollout-1": 3}, "and 6 of 12 wait"


def test_a_call_takes_all_groups_and_there_is_one_for_each_actor(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    calls = len(world.pending)
    pool.fill(versions_ahead=0)
    assert [reference.name for reference in world.pending[calls:]] == ["rollout-0", "rollout-1"]
    while pool.ledger.counts().in_flight - len(pool.ledger.at(GroupStage.READY)):
        pool.poll(1.0)
        assert sum(reference.generates for reference in world.pending) <= 2


def test_prompts_of_an_interrupted_run_come_before_new_ones(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    interrupted = [Encoder().encode(QUESTION, f"0.0:before-{i}") for i in range(2)]
    pool.issue_again(interrupted)
    assert pool.unused_prompt_ids() == ["0.0:before-0", "0.0:before-1"]
    ids = [group.prompt.id for group in pool.take(0)]
    assert len(ids) == 6
    assert ids[:2] == ["0.0:before-0", "0.0:before-1"]
    assert pool.ledger.counts().issued == 6


def test_the_parts_of_a_pool_share_its_actors_and_limits(world: World) -> None:
    actors, pool = a_pool(world, actors=2)
    assert pool.engines._actors is pool.measurements._actors is actors
    pool.scale(1, "of the test")
    assert pool.actor_counts().target == actors.counts().target == 1


def test_what_an_engine_samples_at_once_counts_in_sequences(world: World) -> None:
    actors, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    assert len(pool.take(0)) == 6
    prompts = [Encoder().encode(QUESTION, f"evaluation:{i}") for i in range(20)]
    at_once: list[int] = []
    of_first = actors._actors["rollout-0"].handle
    world.happens = lambda: at_once.append(len(of_first.running))
    pool.run(prompts, Sampling(1, 4, 0.0))
    assert max(at_once) == 8, "as many answers as the engine samples, not as many as groups of the training"
    pool.run(prompts[:1], Sampling(20, 4, 1.0))  # more than an engine samples at once is given to it all the same


def test_an_evaluation_has_no_more_prompts_in_memory_than_keep_its_actors_busy(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    drawn, most = 0, 0

    def prompts() -> Iterator[Prompt]:
        nonlocal drawn
        for drawn in range(1, 301):
            yield Encoder().encode(QUESTION, f"evaluation:{drawn}")

    def look() -> None:
        nonlocal most
        (work,) = [each for each in pool._workloads if each is not pool._training]
        assert len(work.prompts) == drawn - len(work.groups)
        assert work.ledger.counts().in_flight == len(work.prompts), "what is done is not looked through any more"
        most = max(most, len(work.prompts))

    world.happens = look
    groups = pool.run(prompts(), Sampling(1, 4, 0.0))
    assert [group.prompt.id for group in groups] == [f"evaluation:{i}" for i in range(1, 301)]
    assert most == 2 * 8 + 32, "two engines sample eight at once, and some wait"
    assert {group.prompt.image.size for group in groups} == {0}


def test_an_evaluation_of_nothing_is_nothing(world: World) -> None:
    _, pool = a_pool(world, actors=1)
    assert pool.run([], Sampling(1, 4, 0.0)) == []


def test_another_run_begins_at_version_0_on_actors_that_nobody_uses(world: World) -> None:
    actors, pool = a_pool(world, actors=2)
    for version in range(3):
        assert len(pool.take(version)) == 6
        pool.load_weights(update(version + 1))
    pool.fill(versions_ahead=0)
    pool.finish()
    # The next run's engines forget what this one asked, which would look like a failure.
    pool.measurements.begin_probe(["rollout-0"], [Encoder().encode(QUESTION, "probe")], Sampling(2, 4, 1.0), version=3)
    pool.finish()
    assert not world.pending
    pool.engines.forget_run()
    assert {actor.version for actor in actors.up.values()} == {-1}
    config = a_config({"steps": 100, "prompts_per_step": 6, "group_size": 4}, actors=2)
    again = RolloutPool(config, actors, reward_actors(world, config), a_stream(), Ledger(lambda: world.now))
    again.load_weights(update(0))
    assert {int(v) for group in again.take(0) for v in group.completions.versions} == {0}
    assert pool.ledger.counts().used == 18


def test_an_actor_that_joins_takes_what_waits(world: World) -> None:
    world.silent.add("rollout-1")
    _, pool = a_pool(world, actors=2, min_actors=1)
    world.group_seconds = 6.0
    pool.fill(versions_ahead=0)
    world.silent.clear()
    assert actors_of(pool.take(0))["rollout-1"] >= 2


def test_groups_of_a_dead_actor_are_issued_again_under_the_same_ids(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    before = pool.unused_prompt_ids()
    world.dead.add("rollout-0")
    groups = pool.take(0)
    assert [group.prompt.id for group in groups] == before
    assert "rollout-0" not in actors_of(groups)
    assert pool.ledger.counts().reissued == 2


def test_an_answer_of_an_actor_that_was_given_up_is_dropped_and_counted(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    world.silent.add("rollout-0")
    groups = pool.take(0)
    assert "rollout-0" not in actors_of(groups), "15 seconds are over: somebody else did it"
    assert any("rollout-0 is gone (lost)" in text and "was not answered within" in text for text in world.said)
    world.silent.clear()
    pool.poll(1.0)
    assert pool.ledger.counts().late == 2
    assert pool.ledger.counts().used == 6


def test_a_draining_actor_finishes_what_it_has_and_gets_nothing_new(world: World) -> None:
    actors, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    world.draining["node of rollout-0"] = 60.0
    groups = pool.take(0)
    assert actors_of(groups)["rollout-0"] == 2
    assert pool.ledger.counts().reissued == 0
    assert actors.counts().gone[Leave.DRAINED] == 1


def test_an_evaluation_outlives_its_actors_too(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    world.dead.add("rollout-1")
    prompts = [Encoder().encode(QUESTION, f"evaluation:{i}") for i in range(9)]
    groups = pool.run(prompts, Sampling(1, 4, 0.0))
    assert [group.prompt.id for group in groups] == [prompt.id for prompt in prompts]
    assert pool._workloads == [pool._training], "nothing of it is kept"


def test_a_question_that_ends_engines_is_found_recorded_and_asked_no_more(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.places = 100
    world.deadly = {"q3"}
    actors, pool = a_pool(world, run={"dir": tmp_path}, questions=12, actors=2)
    for step in range(1, 7):  # three epochs
        groups = pool.take(0)
        assert len(groups) == 6
        assert "q3" not in {group.prompt.question.id for group in groups}
        assert pool.ledger.counts().used == 6 * step
    assert actors.counts().lost == 3, "once among others, then alone, and alone again"
    (folder,) = (tmp_path / "set_aside").iterdir()
    assert folder.name == "q3", "no innocent one"
    record = json.loads((folder / "question.json").read_text())
    assert len(record["deaths"]) == 2
    assert all("the engine process died" in reason for reason in record["deaths"])
    assert sum("question 'q3' ended 2 engines that generated nothing else" in text for text in world.said) == 1
    counts = pool.ledger.counts()
    assert counts.dropped.keys() == {"set_aside"}
    assert counts.dropped["set_aside"] >= 3, "in each epoch it is drawn, and counted"
    assert counts.reissued <= 2 + 2, "what was with it once, and it itself"

    later = World()
    install(later, monkeypatch)
    later.deadly = {"q3"}
    _, resumed = a_pool(later, run={"dir": tmp_path}, questions=12, actors=2)
    resumed.issue_again([Encoder().encode(replace(QUESTION, id="q3"), "0.3:q3")])  # in flight at the last checkpoint
    for _ in range(4):
        assert len(resumed.take(0)) == 6
    assert later.killed == []
    assert resumed.ledger.counts().dropped["set_aside"] >= 2


@pytest.mark.parametrize("actors", [1, 3])
@pytest.mark.parametrize("deadly", [{"q3", "q4"}, {"q0", "q11"}])
def test_of_several_each_is_found(world: World, tmp_path: Path, actors: int, deadly: set[str]) -> None:
    world.places = 100
    world.deadly = deadly
    _, pool = a_pool(world, max_staleness=2, run={"dir": tmp_path}, questions=12, actors=actors)
    for version in range(8):
        pool.load_weights(update(version))
        assert len(pool.take(version)) == 6
        pool.fill(versions_ahead=1)
    assert {folder.name for folder in (tmp_path / "set_aside").iterdir()} == deadly


def test_where_every_question_ends_its_engine_something_else_is_wrong(world: World, tmp_path: Path) -> None:
    world.places = 100
    world.deadly = {f"q{i}" for i in range(12)}
    _, pool = a_pool(world, run={"dir": tmp_path}, questions=12, actors=2)
    with pytest.raises(RuntimeError, match="3 questions in a row ended their engines, and none was answered"):
        pool.take(0)


def test_a_run_of_which_all_questions_are_set_aside_ends(world: World, tmp_path: Path) -> None:
    for i in range(2):
        Incidents(tmp_path, print).put_aside(Encoder().encode(replace(QUESTION, id=f"q{i}"), "p"), ["died"])
    _, pool = a_pool(world, run={"dir": tmp_path}, questions=2, actors=1)
    with pytest.raises(ValueError, match="all questions of this run are set aside"):
        pool.take(0)


def test_the_loss_of_a_node_makes_no_suspects(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    pool._on_lost("rollout-0", RayActorError("rollout-0", "The actor died because its node has died. Node Id: 1"))
    pool.poll()
    assert len(pool._suspects) == 0
    world.dead.add("rollout-1")
    pool.poll()
    assert len(pool._suspects) == 2


def test_an_evaluation_question_that_ends_engines_is_an_error_with_its_record(world: World, tmp_path: Path) -> None:
    world.deadly = {"q"}
    _, pool = a_pool(world, run={"dir": tmp_path}, actors=1)
    with pytest.raises(RuntimeError, match=r"question 'q' ended 2 engines .*set_aside/q\. Leave it out of the eval"):
        pool.run([Encoder().encode(QUESTION, "evaluation:q")], Sampling(1, 4, 0.0))


def every_other(prompt_id: str) -> bool:
    """Prompts are `epoch.position:question`; the stream has one question, so that epochs count them."""
    return int(prompt_id.partition(".")[0]) % 2 == 0


DYNAMIC = {"dynamic_sampling": True, "max_refills": 2}


def test_groups_of_equal_rewards_are_replaced_and_counted(world: World) -> None:
    _, pool = a_pool(world, rewards=[RewardActor(world, every_other)], train=DYNAMIC, actors=2)
    for _ in range(2):
        groups = pool.take(0)
        assert len(groups) == 6
        assert not any(group.rewards.all_equal for group in groups)
    counts = pool.ledger.counts()
    assert (counts.used, counts.zero_variance) == (12, 0)
    # Every other prompt is dropped: the 12 that were used are among the first 23 or 24.
    assert counts.dropped.keys() == {"zero_variance"}
    assert counts.dropped["zero_variance"] in (11, 12)


def test_where_all_rewards_are_equal_a_step_refills_up_to_its_limit_and_then_goes_on(world: World) -> None:
    _, pool = a_pool(world, rewards=[RewardActor(world, lambda prompt_id: True)], train=DYNAMIC, actors=2)
    for step in (1, 2):
        assert len(pool.take(0)) == 6
        counts = pool.ledger.counts()
        assert counts.dropped == {"zero_variance": step * 2 * 6}, "each step may refill anew"
        assert (counts.used, counts.zero_variance) == (step * 6, step * 6)


def test_without_dynamic_sampling_groups_of_equal_rewards_are_used(world: World) -> None:
    _, pool = a_pool(world, rewards=[RewardActor(world, every_other)], actors=2)
    assert sum(group.rewards.all_equal for group in pool.take(0)) == 3
    counts = pool.ledger.counts()
    assert (counts.used, counts.zero_variance, counts.dropped) == (6, 3, {})


def test_the_learner_is_shown_what_is_ready_while_it_waits(world: World) -> None:
    _, pool = a_pool(world, actors=1)
    shown: list[int] = []
    pool.take(0, lambda groups: shown.append(len(groups)))
    # One actor has two of the six groups at a time.
    assert sorted(set(shown)) == [0, 2, 4]
    assert shown == sorted(shown)


def test_advantages_are_relative_to_the_group_and_divided_as_the_settings_say(world: World) -> None:
    _, pool = a_pool(world, actors=1)
    # Rewards 0, 1, 0, 1: deviations of 1/2, unbiased standard deviation 0.577350.
    assert pool.take(0)[0].advantages.tolist() == pytest.approx([-0.865875, 0.865875] * 2, abs=1e-6)
    pool._config = pool._config.model_copy(update={"loss": LossSettings(advantage_std=False)})
    pool.take(0)  # of which some were scored before
    assert pool.take(0)[0].advantages.tolist() == [-0.5, 0.5] * 2


def test_the_stream_hears_how_many_answers_were_right(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, float] = {}
    monkeypatch.setattr(PromptStream, "observe", lambda stream, prompt_id, rate: heard.update({prompt_id: rate}))
    _, pool = a_pool(world, rewards=[RewardActor(world, every_other)], actors=1)
    pool.run([Encoder().encode(QUESTION, "9.0:evaluation")], Sampling(1, 4, 0.0))
    assert heard == {}, "an evaluation is not training"
    groups = pool.take(0)
    assert {group.prompt.id: heard[group.prompt.id] for group in groups} == {
        group.prompt.id: 1.0 if every_other(group.prompt.id) else 0.5 for group in groups
    }


def fails_on(prompt_ids: set[str]) -> type[RewardActor]:
    """A reward actor whose function raises on these prompts, or on all if there are none."""

    class Failing(RewardActor):
        def _rewards(self, prompt_id: str, size: int) -> Any:
            if prompt_id in prompt_ids or not prompt_ids:
                return RewardError(f"'mine' raised on {prompt_id}", "mine", "<answer>")
            return super()._rewards(prompt_id, size)

    return Failing


def test_an_error_of_a_reward_function_ends_the_run_with_its_message(world: World, tmp_path: Path) -> None:
    _, pool = a_pool(world, rewards=[fails_on({"2.0:q"})(world)], run={"dir": tmp_path}, actors=1)
    with pytest.raises(ValueError, match=r"^'mine' raised on 2\.0:q \(all of it in .*reward_errors\.jsonl; reward\."):
        pool.take(0)


def test_a_group_whose_reward_fails_is_dropped_counted_and_recorded_where_the_settings_say(
    world: World, tmp_path: Path
) -> None:
    rewards = [fails_on({"2.0:q", "4.0:q"})(world)]
    _, pool = a_pool(world, rewards=rewards, run={"dir": tmp_path}, reward={"on_error": "drop"}, actors=1)
    groups = pool.take(0)
    assert len(groups) == 6
    assert not {"2.0:q", "4.0:q"} & {group.prompt.id for group in groups}
    assert pool.ledger.counts().dropped == {"reward_error": 2}
    assert sum("is left out: 'mine' raised on" in text for text in world.said) == 2
    rows = [json.loads(line) for line in (tmp_path / "reward_errors.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["2.0:q", "4.0:q"]
    assert (rows[0]["function"], rows[0]["completion"], rows[0]["question"]["stem"]) == ("mine", "<answer>", "Which?")


def test_a_reward_function_that_fails_on_every_group_ends_the_run_all_the_same(world: World, tmp_path: Path) -> None:
    rewards = [fails_on(set())(world)]
    _, pool = a_pool(world, rewards=rewards, run={"dir": tmp_path}, reward={"on_error": "drop"}, actors=1)
    with pytest.raises(ValueError, match="the last 32 groups all had to be left out"):
        pool.take(0)


def test_an_evaluation_calls_no_reward_function(world: World) -> None:
    rewards = RewardActor(world)
    _, pool = a_pool(world, rewards=[rewards], actors=1)
    pool.take(0)
    assert rewards.judged_only == []
    pool.run([Encoder().encode(QUESTION, "evaluation:1")], Sampling(1, 4, 0.0))
    assert rewards.judged_only == ["evaluation:1"]


@pytest.mark.parametrize("fault", ["silent", "dead"])
def test_a_reward_actor_that_does_not_answer_is_replaced(world: World, fault: str) -> None:
    _, pool = a_pool(world, actors=1)
    pool.fill(versions_ahead=0)
    getattr(world, fault).add("reward-0")
    assert len(pool.take(0)) == 6
    assert any("reward-0 is gone" in text and "reward-1 replaces it" in text for text in world.said)
    assert world.killed == ["reward-0"]


def test_a_finished_run_waits_for_no_reward_beyond_its_deadline(world: World) -> None:
    _, pool = a_pool(world, actors=1)
    pool.fill(versions_ahead=0)
    world.silent.add("reward-0")
    pool.finish()
    assert world.killed == ["reward-0"]
    assert pool.ledger.counts().in_flight == 6


def test_a_prompt_that_the_engine_refuses_ends_the_run_and_not_the_actor(world: World) -> None:
    actors, pool = a_pool(world, actors=1)

    refusal = ValueError("rollout-0: the engine refused prompt '0.0:q': too long")
    with pytest.raises(ValueError, match=r"^rollout-0: the engine refused prompt '0\.0:q': too long$"):
        pool._on_lost("rollout-0", RayTaskError("generate", "Traceback: ...", refusal).as_instanceof_cause())
    assert actors.serving.keys() == {"rollout-0"}


def test_an_image_that_nobody_can_make_ends_the_run_and_blames_neither_actor_nor_question(world: World) -> None:
    actors, pool = a_pool(world, actors=1)
    pool.fill(versions_ahead=0)
    lost = RayTaskError("generate", "Traceback: ...", ActorDiedError()).as_instanceof_cause()
    with pytest.raises(RuntimeError, match=r"^an image was lost, and its encoder is gone for good"):
        pool._on_lost("rollout-0", lost)
    assert actors.serving.keys() == {"rollout-0"}
    assert not list(pool._suspects)
    pool._on_lost("rollout-0", ActorDiedError())
    assert not actors.serving, "its own death is another matter"


def test_spans_are_given_out_once(world: World) -> None:
    _, pool = a_pool(world, actors=2)
    pool.take(0)
    spans = pool.drain_spans()
    assert Counter(span.phase for span in spans) == {"rollout": 6, "reward": 6}
    assert pool.drain_spans() == []


def test_a_finished_run_waits_for_no_actor_beyond_its_deadline(world: World) -> None:
    """Else engines that are lent to one run after another would hang for ever."""
    _, pool = a_pool(world, actors=2)
    pool.fill(versions_ahead=0)
    world.silent.add("rollout-0")
    start = world.now
    pool.finish()
    assert 15 < world.now - start < 15 + 2
    assert world.killed == ["rollout-0"]
    assert not pool.ledger.load_of(pool.rollout_names)["rollout-1"], "what it had is not issued again"


def test_a_broken_broadcast_with_groups_in_flight_costs_only_the_dead_actor(world: World) -> None:
    """Those in health lose their weights, and with them what they were generating: it is issued again, nothing more."""
    actors, pool = a_pool(world, max_staleness=1, actors=3)
    pool.fill(versions_ahead=0)
    world.engine_dead.add("rollout-0")
    world.failing |= {"rollout-1", "rollout-2"}
    passing = WeightUpdate(1, (), "digest 1", lasting=False)
    assert pool.load_weights(passing, world.failing.clear) == []
    assert actors.up.keys() == {"rollout-1", "rollout-2"}
    assert actors.serving == {}, "nothing is given to them before they hold weights"
    assert len(pool.load_weights(passing, lambda: None)) == 2
    assert len(pool.take(1)) == 6
    assert actors.counts().lost == 1


def test_a_run_whose_actors_are_all_lost_loads_the_weights_anew_where_they_do_not_last(world: World) -> None:
    """A newcomer cannot take part in a broadcast that is over, and the next one would come after this step."""
    _, pool = a_pool(world, actors=2)
    passing = WeightUpdate(1, (), "digest 1", lasting=False)
    pool.load_weights(passing, lambda: None)
    pool.renew_weights = lambda: pool.load_weights(passing, lambda: None)
    pool.fill(versions_ahead=0)
    world.engine_dead |= {"rollout-0", "rollout-1"}
    assert actors_of(pool.take(1)).keys() <= {"rollout-2", "rollout-3"}
    assert world.now < 20


@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("seed", range(8))
def test_every_step_gets_its_groups_through_random_faults(
    world: World, tmp_path: Path, seed: int, max_staleness: int
) -> None:
    rng = random.Random(seed)
    # Of many questions: with so many faults one that is innocent may meet two in a row, and is set aside.
    actors, pool = a_pool(
        world, max_staleness, run={"dir": tmp_path}, questions=100, actors=3, min_actors=1, max_actors=5
    )
    used: list[str] = []

    def happens() -> None:
        for name in pool.rollout_names[1:]:
            fault = rng.random()
            if fault < 0.02:
                world.dead.add(name)
            elif fault < 0.03:
                world.silent.add(name)
            elif fault < 0.04:
                world.draining[f"node of {name}"] = rng.choice((1.0, 60.0))

    world.happens = happens
    for version in range(60):
        if rng.random() < 0.2:
            pool.scale(rng.randint(1, 5), "of the test")
        start = world.now
        pool.load_weights(update(version))
        assert world.now - start < 10 + 2, "no sync waits beyond its deadline"
        assert {actor.version for actor in actors.serving.values()} <= {version}
        groups = pool.take(version)
        assert len(groups) == 6
        for group in groups:
            assert 0 <= version - int(group.completions.versions.min()) <= max_staleness
        used += [group.prompt.id for group in groups]
        pool.fill(versions_ahead=1)
        for _ in range(rng.randint(0, 3)):
            pool.poll(0.5)
        counts, members = pool.ledger.counts(), pool.actor_counts()
        assert counts.used == 6 * (version + 1)
        assert counts.in_flight == len(pool.unused_prompt_ids())
        assert members.asked == members.present + sum(members.gone.values())
    assert len(set(used)) == len(used), "no group was used twice"
    assert pool.actor_counts().asked > 10
    assert pool.ledger.counts().reissued > 0


def test_groups_are_fetched_and_scored_while_weights_load(world: World) -> None:
    _, pool = a_pool(world, max_staleness=1, actors=2)
    pool.fill(versions_ahead=0)
    world.load_seconds = 9.0
    world.group_seconds_of["rollout-1"] = 4.0
    pool.load_weights(update(1))
    assert len(pool.ledger.at(GroupStage.READY)) >= 2, "of two actors that are done after 2 and 4 of 9 seconds"


def test_engines_begin_on_an_evaluation_while_further_prompts_are_encoded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload_module, "_PORTION", 4)
    actors, pool = a_pool(world, actors=2)
    under_way: list[int] = []

    def prompts() -> Iterator[Prompt]:
        for i in range(12):
            under_way.append(sum(len(actor.handle.running) for actor in actors._actors.values()))
            yield Encoder().encode(QUESTION, f"evaluation:{i}")

    groups = pool.run(prompts(), Sampling(1, 4, 0.0))
    assert [group.prompt.id for group in groups] == [f"evaluation:{i}" for i in range(12)]
    assert under_way[:9] == [0, 0, 0, 0, 4, 4, 4, 4, 8]


def test_rewards_and_assignments_go_on_while_a_question_is_encoded(world: World) -> None:
    _, pool = a_pool(world, max_staleness=1, actors=2)
    pool.fill(versions_ahead=0)
    ready: list[int] = []

    class Slow(Encoder):
        """Waits as `RemoteEncoder` does for an encoder on a slow disk: longer than six groups take."""

        def encode(self, question: Question, prompt_id: str) -> Prompt:
            for _ in range(60):
                pool.poll(1.0)
            ready.append(len(pool.ledger.at(GroupStage.READY)))
            return super().encode(question, prompt_id)

    assert pool._stream is not None
    pool._stream._encoder = Slow()
    used = [group.prompt.id for group in pool.take(0)]
    assert len(set(used)) == 6
    pool.load_weights(update(1))
    pool.fill(versions_ahead=0)
    assert ready == [6, 7, 8, 9, 10, 11], "of 12 in flight, the one before is answered while the next is encoded"
    counts = pool.ledger.counts()
    assert (counts.issued, counts.in_flight, counts.reissued, counts.late) == (18, 12, 0, 0)
    assert len(pool.take(1)) == 6
