"""The reward actor in a real Ray process: scoring, errors, and time limits that end what hangs."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from medr1_ray.rewards.actor import GRACE_SECONDS, RewardActor, ScoreRequest
from medr1_ray.rewards.functions import RewardError
from medr1_ray.types import Question, Rewards
from tests.faults.processes import PATIENCE

QUESTION = Question(
    id="q1",
    image_path="/images/1.png",
    stem="What imaging technique was used?",
    options=("MRI", "CT"),
    answer=1,
    modality="CT",
    question_type="Modality Recognition",
    dataset="test",
)
# Enough for a busy machine to score in.
LIMIT_SECONDS = 3.0
# `does` does what the completion says: the name of a function here, or its own length.
USERS_MODULE = """
import itertools
import re

def spins():
    while True:
        pass

def swallows():
    while True:
        try:
            spins()
        except Exception:
            pass

def swallows_once():
    try:
        spins()
    except:
        spins()

def backtracks():
    re.fullmatch("(a|a)*b", "a" * 60)

def raises():
    raise KeyError("no such key")

def eats():
    held = []
    while True:
        held.append(bytearray(2**24))

def hangs_in_c():
    all(itertools.repeat(True))

def does(completion, question, mode):
    if completion in globals():
        globals()[completion]()
    return len(completion)
"""


SETTINGS = {
    "overlong_buffer_tokens": 0,
    "max_tokens": 8,
    "timeout_seconds": LIMIT_SECONDS,
    "memory_gib": 0.25,
    "name": "reward-0",
}


def request(prompt_id: str, *texts: str, judge_only: bool = False) -> ScoreRequest:
    """Of completions that are 4 tokens long each."""
    return ScoreRequest(prompt_id, texts, np.full(len(texts), 4, np.int32), QUESTION, judge_only=judge_only)


def scored(actor: Any, prompt_id: str, texts: tuple[str, ...], timeout: float | None = None) -> Rewards:
    """The rewards of one group; raises what the actor found wrong."""
    (found,) = ray.get(actor.score.remote([request(prompt_id, *texts)]), timeout=timeout)
    if isinstance(found, RewardError):
        raise found
    assert isinstance(found, Rewards)
    return found


@pytest.fixture(scope="module")
def actor(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A reward actor that finds the user's module `users_rewards`."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "users_rewards.py").write_text(USERS_MODULE)
    actor_class = ray.remote(RewardActor).options(num_cpus=0, max_restarts=1)
    # Which the actor's own process does not have: the driver's PYTHONPATH is not that of a node's processes.
    path = (str(folder),)
    actor = actor_class.remote({"accuracy": 1.0, "users_rewards:does": 0.5}, "no_think", path=path, **SETTINGS)
    assert ray.get(actor.ping.remote()) == "reward-0"
    yield actor
    ray.kill(actor)


def test_scores_with_functions_of_the_registry_and_the_users(actor: Any) -> None:
    rewards = scored(actor, "p1", ("<answer>b</answer>", "B"))
    assert rewards.names == ("accuracy", "users_rewards:does")
    assert rewards.values.tolist() == [[1, 18], [0, 1]]
    assert rewards.total.tolist() == [10.0, 0.5]
    assert rewards.correct.tolist() == [True, False]
    assert rewards.answers == ("B", None)
    assert rewards.span.actor == "reward-0"


@pytest.mark.parametrize("what", ["spins", "swallows", "swallows_once", "backtracks"])
def test_a_function_that_hangs_is_ended_and_the_actor_goes_on(actor: Any, what: str) -> None:
    with pytest.raises(ValueError, match="was still scoring") as caught:
        scored(actor, "p7", ("x", what), timeout=PATIENCE)
    for part in ("'users_rewards:does'", "'p7'", f"reward.timeout_seconds={LIMIT_SECONDS:g}"):
        assert part in str(caught.value)
    assert scored(actor, "p8", ("x",)).total.tolist() == [0.5]


def test_a_limit_that_ran_out_does_not_strike_later(actor: Any) -> None:
    """The alarm repeats every second until it is stopped: this waits for one more."""
    with pytest.raises(ValueError, match="was still scoring"):
        scored(actor, "p1", ("spins",))
    time.sleep(1.5)
    assert scored(actor, "p2", ("x",)).total.tolist() == [0.5]


def test_errors_name_function_prompt_and_completion(actor: Any) -> None:
    with pytest.raises(ValueError, match="raised KeyError") as caught:
        scored(actor, "p7", ("raises",))
    for part in ("'users_rewards:does'", "'p7'", "no such key", "completion: 'raises'"):
        assert part in str(caught.value)


def test_a_function_that_eats_memory_is_ended_and_the_actor_goes_on(actor: Any) -> None:
    with pytest.raises(RewardError, match="raised MemoryError") as caught:
        scored(actor, "p7", ("x", "eats"), timeout=PATIENCE)
    assert "the limit is reward.memory_gib=0.25" in str(caught.value)
    assert (caught.value.function, caught.value.completion) == ("users_rewards:does", "eats")
    assert scored(actor, "p8", ("x",)).total.tolist() == [0.5]


def test_groups_of_a_call_are_scored_each_under_its_own_limits(actor: Any) -> None:
    texts = {"p1": "x", "p2": "spins", "p3": "raises", "p4": "xx"}
    requests = [request(prompt_id, text) for prompt_id, text in texts.items()]
    first, slow = ray.get(actor.score.remote(requests), timeout=PATIENCE)  # a call ends after a second
    wrong, last = ray.get(actor.score.remote(requests[2:]), timeout=PATIENCE)
    assert (first.prompt_id, first.total.tolist(), last.total.tolist()) == ("p1", [0.5], [1.0])
    assert "'p2'" in str(slow)
    assert "'p3'" in str(wrong)
    assert [type(each) for each in (slow, wrong)] == [RewardError] * 2


def test_who_only_judges_calls_no_function(actor: Any) -> None:
    (rewards,) = ray.get(actor.score.remote([request("p1", "<answer>B</answer>", judge_only=True)]))
    assert (rewards.names, rewards.correct.tolist(), rewards.well_formed.tolist()) == ((), [True], [True])


def test_what_no_signal_reaches_ends_the_process(actor: Any) -> None:
    started = time.monotonic()
    with pytest.raises(RayActorError):
        scored(actor, "p7", ("hangs_in_c",), timeout=PATIENCE)
    assert time.monotonic() - started >= LIMIT_SECONDS + GRACE_SECONDS
    assert total_once_restarted(actor) == [0.5]


def total_once_restarted(actor: Any) -> list[float]:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return scored(actor, "p8", ("x",)).total.tolist()
        except ActorUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_an_unknown_function_fails_at_the_start(ray_cluster: None) -> None:
    actor = ray.remote(RewardActor).options(num_cpus=0).remote({"acuracy": 1.0}, "think", **SETTINGS)
    with pytest.raises(ActorDiedError, match="did you mean 'accuracy'"):
        ray.get(actor.ping.remote())


def test_beside_the_main_thread_it_refuses_to_score(ray_cluster: None) -> None:
    actor_class = ray.remote(RewardActor).options(num_cpus=0, max_concurrency=2)
    actor = actor_class.remote({"accuracy": 1.0}, "think", **SETTINGS)
    with pytest.raises(ValueError, match="signal only works in main thread"):
        scored(actor, "p1", ("x",))
    ray.kill(actor)


def test_long_completions_are_punished_where_their_lengths_are_known(ray_cluster: None) -> None:
    # At most 8 tokens, a buffer of 4: 0 up to 4 tokens, then (4 - length) / 4, on top of the accuracy.
    settings = {**SETTINGS, "overlong_buffer_tokens": 4}
    actor = ray.remote(RewardActor).options(num_cpus=0).remote({"accuracy": 1.0}, "no_think", **settings)
    texts = ("<answer>b</answer>",) * 3
    (rewards,) = ray.get(actor.score.remote([ScoreRequest("p1", texts, np.int32([4, 6, 8]), QUESTION)]))
    assert rewards.names == ("accuracy", "overlong")
    assert rewards.total.tolist() == [1, 0.5, 0]
    ray.kill(actor)
