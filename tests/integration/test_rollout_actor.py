"""The rollout actor: what it returns for a prompt, what it refuses, and what happens when its engine dies."""

import os
import re
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoTokenizer

from medr1_ray.code_digest import code_digest
from medr1_ray.config import Config
from medr1_ray.rollout_actor import NotServingError, RolloutActor, WeightLoadError
from medr1_ray.tiny import model_path
from medr1_ray.types import Completions, Prompt, Sampling
from medr1_ray.vocabulary import load_vocabulary
from medr1_ray.weight_sync import write_buckets


@pytest.fixture(scope="module")
def actor(rollout_actor: Any, start_weights: dict[str, torch.Tensor]) -> Any:
    """The shared actor, serving the start model as version 1."""
    report = ray.get(rollout_actor.load_weights.remote(write_buckets(start_weights.items(), 1, 2**20, ray.put)))
    assert report.version == 1
    return rollout_actor


@pytest.fixture(scope="module")
def doomed_actor(ray_cluster: None, engine_config: Config) -> Any:
    """Another actor, whose engine will be killed; started early, so that it starts beside the shared one."""
    return ray.remote(RolloutActor).options(num_cpus=0).remote(engine_config, 1, code_digest())


def generate(actor: Any, request_id: str, prompt: Prompt, sampling: Sampling) -> Completions:
    completions: Completions = ray.get(actor.generate.remote(request_id, prompt, sampling))
    return completions


def test_nothing_is_served_before_the_first_weights(
    doomed_actor: Any, rollout_actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    if ray.get(rollout_actor.status.remote()).version is None:
        with pytest.raises(NotServingError, match="no weights have been loaded yet"):
            generate(rollout_actor, "too early", make_prompt("a"), Sampling(2, 4, 1.0))


def test_a_group_comes_back_as_flat_arrays(actor: Any, make_prompt: Callable[[str], Prompt]) -> None:
    found = generate(actor, "flat", make_prompt("a"), Sampling(group_size=5, max_tokens=20, temperature=1.0))
    vocabulary = load_vocabulary(model_path())
    total = int(found.lengths.sum())

    assert (found.prompt_id, found.actor) == ("a", "rollout-0")
    assert found.lengths.shape == found.truncated.shape == (5,)
    assert found.token_ids.shape == found.rollout_logprobs.shape == found.versions.shape == (total,)
    dtypes = (found.token_ids, found.rollout_logprobs, found.versions, found.lengths, found.truncated)
    assert [str(array.dtype) for array in dtypes] == ["int32", "float32", "int32", "int32", "bool"]
    assert set(found.versions) == {1}
    assert np.all(found.rollout_logprobs < 0)
    assert found.visual_tokens == 9  # 84 pixels are 6 patches of 14, merged two by two: 3 x 3
    assert 0 < found.span.seconds < 120
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ends = np.cumsum(found.lengths)
    for end, length, truncated, text in zip(ends, found.lengths, found.truncated, found.texts, strict=True):
        ids = found.token_ids[end - length : end].tolist()
        assert truncated == (ids[-1] not in vocabulary.stop)
        assert truncated <= (length == 20)
        assert not set(ids[:-1]) & set(vocabulary.stop)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_banned_tokens_are_never_sampled_and_stop_tokens_stop(
    actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    vocabulary = load_vocabulary(model_path())
    found = generate(actor, "banned", make_prompt("a"), Sampling(32, 250, temperature=3.0))
    warm = generate(actor, "uniform", make_prompt("a"), Sampling(32, 250, temperature=10.0))
    ids = np.concatenate([found.token_ids, warm.token_ids])
    # At temperature 10 each of 488 tokens has a share near 1/488: of some thousands of tokens, each banned one would
    # be met about ten times.
    assert warm.token_ids.size > 2000
    assert len(set(warm.token_ids.tolist())) > 300
    assert not set(ids.tolist()) & set(vocabulary.banned)
    assert set(vocabulary.stop) & set(ids.tolist())


def test_greedy_completions_are_all_alike_and_repeatable(
    actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    one = generate(actor, "greedy", make_prompt("a"), Sampling(1, 30, temperature=0.0))
    three = generate(actor, "greedy again", make_prompt("a"), Sampling(3, 30, temperature=0.0))
    assert three.token_ids.tolist() == one.token_ids.tolist() * 3
    assert np.all(np.isfinite(one.rollout_logprobs))


def test_a_seed_repeats_a_request_but_not_its_neighbour(
    actor: Any, make_prompt: Callable[[str], Prompt], start_weights: dict[str, torch.Tensor]
) -> None:
    sampling = Sampling(4, 20, temperature=3.0, seed=11)
    first = generate(actor, "seeded", make_prompt("a"), sampling)
    neighbour = generate(actor, "seeded too", make_prompt("a"), sampling)
    # A new version forgets finished requests, so that the same one is sampled anew.
    ray.get(actor.load_weights.remote(write_buckets(start_weights.items(), 2, 2**20, ray.put)))
    again = generate(actor, "seeded", make_prompt("a"), sampling)
    assert set(again.versions) == {2}
    assert again.token_ids.tolist() == first.token_ids.tolist()
    assert neighbour.token_ids.tolist() != first.token_ids.tolist()
    assert len(set(first.texts)) > 1


def test_a_request_that_comes_twice_is_done_once(actor: Any, make_prompt: Callable[[str], Prompt]) -> None:
    request = ("twice", make_prompt("a"), Sampling(4, 100, temperature=3.0))
    first, joined = ray.get([actor.generate.remote(*request) for _ in range(2)])
    later = ray.get(actor.generate.remote(*request))
    assert first.token_ids.tolist() == joined.token_ids.tolist() == later.token_ids.tolist()
    assert first.span == joined.span == later.span


def test_many_prompts_at_once_keep_their_images_apart(
    actor: Any, make_prompt: Callable[[str], Prompt], transformers_logprobs: Any, start_weights: Any
) -> None:
    prompts = [make_prompt(name) for name in "abcdefgh"]
    found = ray.get([actor.generate.remote(f"many {p.id}", p, Sampling(2, 8, 1.0)) for p in prompts])
    for prompt, completions in zip(prompts, found, strict=True):
        assert completions.prompt_id == prompt.id
        length = completions.lengths[0]
        expected = transformers_logprobs(start_weights, prompt, completions.token_ids[:length])
        assert np.abs(completions.rollout_logprobs[:length] - expected).max() <= 1e-4


def test_a_prompt_too_long_for_the_engine_is_an_error(
    actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    prompt = make_prompt("a")
    long = Prompt("long", prompt.question, np.tile(prompt.token_ids[-1:], 600), prompt.image)
    with pytest.raises(ValueError, match="refused prompt 'long'"):
        generate(actor, "too long", long, Sampling(2, 4, 1.0))
    assert generate(actor, "still well", prompt, Sampling(2, 4, 1.0)).lengths.size == 2


def test_the_engine_writes_to_the_run_directory(actor: Any, engine_config: Config) -> None:
    assert "EngineCore" in (engine_config.run.dir / "logs" / "rollout-0.log").read_text()


def test_other_code_than_the_drivers_is_refused(ray_cluster: None, engine_config: Config) -> None:
    stranger = ray.remote(RolloutActor).options(num_cpus=0).remote(engine_config, 2, "0" * 32)
    with pytest.raises(ray.exceptions.RayActorError, match="runs other code of medr1_ray"):
        ray.get(stranger.ping.remote())


def test_a_dead_engine_is_a_clear_error_and_no_hang(
    doomed_actor: Any,
    engine_config: Config,
    make_prompt: Callable[[str], Prompt],
    start_weights: dict[str, torch.Tensor],
) -> None:
    ray.get(doomed_actor.load_weights.remote(write_buckets(start_weights.items(), 1, 2**20, ray.put)))
    running = doomed_actor.generate.remote("running", make_prompt("a"), Sampling(32, 300, temperature=10.0))
    assert not ray.wait([running], timeout=0.5)[0]
    log = (engine_config.run.dir / "logs" / "rollout-1.log").read_text()
    os.kill(int(re.findall(r"EngineCore pid=(\d+)", log)[-1]), signal.SIGKILL)
    calls = (
        lambda: running,
        lambda: doomed_actor.generate.remote("after", make_prompt("a"), Sampling(2, 4, 1.0)),
        lambda: doomed_actor.ping.remote(),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="engine process died"):
            ray.get(call(), timeout=60)
    update = write_buckets(start_weights.items(), 2, 2**20, ray.put)
    with pytest.raises(WeightLoadError, match="version 2 could not be loaded"):
        ray.get(doomed_actor.load_weights.remote(update), timeout=60)
