"""Weight sync into a running engine: what it computes afterwards is what the new weights compute, and nothing else."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.rollout import engine as rollout_engine
from medr1_ray.rollout.actor import NotServingError, WeightLoadError
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import Completions, GroupRequest, Prompt, Sampling, pixels_of
from medr1_ray.weights.buckets import write_buckets
from medr1_ray.weights.digests import update_digest
from medr1_ray.weights.messages import WeightBucket, WeightUpdate
from tests.faults.processes import PATIENCE, engine_process, frozen
from tests.generating import begin, generate

Weights = dict[str, torch.Tensor]
SEEDED = Sampling(group_size=4, max_tokens=12, temperature=1.0, seed=5)
BUCKET_BYTES = 2**20
EQUAL, DIFFERENT = 1e-4, 1e-2

_versions = itertools.count(100)


def sent(weights: Weights) -> WeightUpdate:
    """An update of the next version, in several buckets."""
    return write_buckets(weights.items(), next(_versions), BUCKET_BYTES, ray.put)


def load(actor: Any, weights: Weights) -> WeightUpdate:
    return load_update(actor, sent(weights))


def load_update(actor: Any, update: WeightUpdate) -> WeightUpdate:
    report = ray.get(actor.load_weights.remote(update))
    assert (report.version, report.digest) == (update.version, update.digest)
    assert 0 < report.paused_seconds <= report.seconds
    return update


def each(completions: Completions) -> list[slice]:
    ends = np.cumsum(completions.lengths)
    return [slice(end - length, end) for end, length in zip(ends, completions.lengths, strict=True)]


def largest_gap(score: Callable[..., np.ndarray], weights: Weights, prompt: Prompt, found: Completions) -> float:
    """Largest difference in nats between the engine's log-probabilities and those of `weights` by transformers."""
    return max(
        float(np.abs(found.rollout_logprobs[one] - score(weights, prompt, found.token_ids[one])).max())
        for one in each(found)
    )


def test_after_a_sync_the_engine_computes_as_a_fresh_one_on_the_saved_checkpoint(
    rollout_actor: Any,
    scrambled: Callable[..., Weights],
    make_prompt: Callable[[str], Prompt],
    transformers_logprobs: Callable[..., np.ndarray],
    engine_config: Config,
    tmp_path: Path,
) -> None:
    prompt = make_prompt("cat")
    old, new = scrambled(1), scrambled(2)
    fresh = generated_by_a_fresh_engine(engine_config, saved(new, tmp_path), "after", prompt)
    load(rollout_actor, old)
    before = generate(rollout_actor, "before", prompt, SEEDED)  # fills the prefix cache and the vision encoder's
    update = load(rollout_actor, new)
    after = generate(rollout_actor, "after", prompt, SEEDED)

    assert set(after.versions) == {update.version}
    assert largest_gap(transformers_logprobs, old, prompt, before) <= EQUAL
    assert largest_gap(transformers_logprobs, new, prompt, after) <= EQUAL
    assert largest_gap(transformers_logprobs, old, prompt, after) >= DIFFERENT
    token_ids, logprobs = ray.get(fresh)
    assert token_ids == after.token_ids.tolist()
    assert len(set(token_ids)) > 10  # sampled, not repeated
    assert np.abs(np.array(logprobs) - after.rollout_logprobs).max() <= EQUAL


@pytest.mark.parametrize("part", ["visual.patch_embed", "visual.merger", "layers.3", "embed_tokens"])
def test_a_change_of_one_part_arrives(
    part: str,
    rollout_actor: Any,
    scrambled: Callable[..., Weights],
    make_prompt: Callable[[str], Prompt],
    transformers_logprobs: Callable[..., np.ndarray],
) -> None:
    prompt = make_prompt("dog")
    old = scrambled(3)
    new = scrambled(4, start=old, only=part)
    load(rollout_actor, old)
    generate(rollout_actor, f"before {part}", prompt, SEEDED)
    load(rollout_actor, new)
    after = generate(rollout_actor, f"after {part}", prompt, SEEDED)
    assert largest_gap(transformers_logprobs, new, prompt, after) <= EQUAL
    assert largest_gap(transformers_logprobs, old, prompt, after) >= DIFFERENT


def test_requests_in_flight_go_on_with_the_new_weights(
    rollout_actor: Any,
    scrambled: Callable[..., Weights],
    make_prompt: Callable[[str], Prompt],
    transformers_logprobs: Callable[..., np.ndarray],
) -> None:
    prompt = make_prompt("long")
    old, new = scrambled(5), scrambled(6)
    # On a busy machine a request may not have begun when the sync comes, or have ended.
    for attempt in range(5):
        old_version, update = load(rollout_actor, old).version, sent(new)
        # What runs below finds its image in the prefix cache, which the sync then clears under it.
        generate(rollout_actor, f"before {attempt}", prompt, Sampling(2, 1, 1.0))
        sizes = {f"long {attempt}": (32, 300), f"short {attempt}": (1, 20)}
        requests = [GroupRequest(id_, prompt, Sampling(*size, 1.0)) for id_, size in sizes.items()]
        groups = dict(ray.get(rollout_actor.generate.remote(requests)))
        new_version = load_update(rollout_actor, update).version
        groups |= dict(ray.get(rollout_actor.generate.remote([])))
        found = groups[f"long {attempt}"]
        if len(set(found.versions)) > 1:
            break

    assert set(found.versions) == {old_version, new_version}
    for one in each(found):
        ids, versions = found.token_ids[one], found.versions[one]
        assert versions.tolist() == sorted(versions)
        for version, weights in ((old_version, old), (new_version, new)):
            gaps = np.abs(found.rollout_logprobs[one] - transformers_logprobs(weights, prompt, ids))
            assert np.all(gaps[versions == version] <= EQUAL)


def test_control_calls_do_not_wait_for_generation(
    rollout_actor: Any,
    engine_config: Config,
    scrambled: Callable[..., Weights],
    make_prompt: Callable[[str], Prompt],
) -> None:
    load(rollout_actor, scrambled(7))
    with frozen(engine_process(engine_config.run.dir / "logs", "rollout-0")):
        running = begin(rollout_actor, "behind", make_prompt("behind"), Sampling(8, 300, 1.0))
        for _ in range(20):
            status = ray.get(rollout_actor.status.remote(), timeout=PATIENCE)
        assert not ray.wait([running], timeout=0)[0]
    assert (status.actor, status.running_requests, status.failure) == ("rollout-0", 1, None)
    ray.get(running)


def test_a_sync_that_comes_twice_is_done_once(rollout_actor: Any, scrambled: Callable[..., Weights]) -> None:
    update = sent(scrambled(0))
    first, second = ray.get([rollout_actor.load_weights.remote(update) for _ in range(2)])
    assert first == second


def test_a_sync_that_comes_too_late_is_refused(rollout_actor: Any, scrambled: Callable[..., Weights]) -> None:
    late = sent(scrambled(0))
    newer = load(rollout_actor, scrambled(0))
    with pytest.raises(ValueError, match=f"version {late.version} came too late"):
        ray.get(rollout_actor.load_weights.remote(late))
    assert ray.get(rollout_actor.status.remote()).version == newer.version


def with_one_bit_flipped(update: WeightUpdate) -> WeightUpdate:
    bucket = update.buckets[1]
    data = ray.get(bucket.data).copy()
    data[1000] ^= 1
    corrupt: WeightBucket = replace(bucket, data=ray.put(data))
    return replace(update, buckets=(update.buckets[0], corrupt, *update.buckets[2:]))


def without_last_tensor(weights: Weights) -> Weights:
    return dict(list(weights.items())[:-1])


def with_unknown_tensor(weights: Weights) -> Weights:
    return {**weights, "model.visual.unheard_of.weight": torch.zeros(3)}


def with_other_shape(weights: Weights) -> Weights:
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    return {**weights, name: weights[name].T}


def breaking_off_in_the_middle(update: WeightUpdate) -> WeightUpdate:
    """One tensor of a middle layer is labelled with a type that torch cannot convert: its layer fails to load."""
    buckets = tuple(
        replace(
            bucket,
            tensors=tuple(
                replace(spec, dtype="uint4") if "layers.2.self_attn.v_proj.weight" in spec.name else spec
                for spec in bucket.tensors
            ),
        )
        for bucket in update.buckets
    )
    assert buckets != update.buckets
    return WeightUpdate(update.version, buckets, update_digest(update.version, buckets))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda weights: with_one_bit_flipped(sent(weights)), "has digest", id="flipped bit"),
        pytest.param(lambda weights: sent(without_last_tensor(weights)), "is missing", id="missing"),
        pytest.param(lambda weights: sent(with_unknown_tensor(weights)), "not a parameter", id="unknown"),
        pytest.param(lambda weights: sent(with_other_shape(weights)), "has shape", id="other shape"),
        pytest.param(lambda weights: breaking_off_in_the_middle(sent(weights)), "UInt4", id="breaks off"),
    ],
)
def test_a_wrong_update_is_never_served_and_a_good_one_heals(
    spoil: Callable[[Weights], WeightUpdate],
    says: str,
    rollout_actor: Any,
    scrambled: Callable[..., Weights],
    make_prompt: Callable[[str], Prompt],
    transformers_logprobs: Callable[..., np.ndarray],
) -> None:
    prompt = make_prompt("sad")
    load(rollout_actor, scrambled(8))
    wrong = spoil(scrambled(0))
    # So much that it is not done before the load fails; then it ends.
    running = begin(rollout_actor, f"running {says}", prompt, Sampling(200, 300, 1.0))
    with pytest.raises(WeightLoadError, match=says):
        ray.get(rollout_actor.load_weights.remote(wrong))
    with pytest.raises(NotServingError, match="could not be loaded"):
        ray.get(running)
    with pytest.raises(NotServingError, match="could not be loaded"):
        generate(rollout_actor, f"refused {says}", prompt, SEEDED)
    assert ray.get(rollout_actor.status.remote()).version is None

    good = scrambled(9)
    load(rollout_actor, good)
    healed = generate(rollout_actor, f"healed {says}", prompt, SEEDED)
    assert largest_gap(transformers_logprobs, good, prompt, healed) <= EQUAL


def saved(weights: Weights, folder: Path) -> Path:
    """The tiny model's checkpoint with other weights, written by transformers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_model_path(), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_model_path()).save_pretrained(folder)
    return folder


def generated_by_a_fresh_engine(config: Config, checkpoint: Path, request_id: str, prompt: Prompt) -> Any:
    """Reference to (token ids, log-probabilities) of a request, by an engine that never receives an update."""

    # Defined in here, Ray sends it by value: its workers cannot import a test module.
    @ray.remote(num_cpus=0)
    def generated(sampling: Sampling) -> tuple[list[int], list[float]]:
        rollout_engine.set_environment(config.rollout.threads)
        engine = rollout_engine.start_engine(EngineSettings.of(config), str(checkpoint), 7)
        params = rollout_engine.sampling_params(sampling, load_vocabulary(checkpoint), prompt.id)

        async def final() -> Any:
            of_engine = rollout_engine.engine_prompt(prompt, pixels_of(prompt.image))
            async for output in engine.generate(of_engine, params, request_id):
                last = output
            return last

        try:
            answers = asyncio.run(final()).outputs
        finally:
            engine.shutdown(timeout=0.0)
        return (
            [token for answer in answers for token in answer.token_ids],
            [logprob for answer in answers for logprob in answer.logprobs.logprobs],
        )

    return generated.remote(SEEDED)
