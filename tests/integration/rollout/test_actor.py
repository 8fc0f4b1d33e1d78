"""The rollout actor: what it returns for a prompt, what it refuses, and what happens when its engine dies."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from medr1_ray.base.code_digest import code_digest
from medr1_ray.config import Config, tiny_model_path
from medr1_ray.data.encoding import continuations
from medr1_ray.model.checkpoint_files import checkpoint_tensors
from medr1_ray.model.family import checkpoint_name
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.packing import pack_groups
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.rollout.actor import EngineLostError, NotServingError, RolloutActor
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import Prompt, Sampling
from medr1_ray.weights.buckets import write_buckets
from tests.faults.processes import PATIENCE, engine_process, frozen
from tests.generating import begin, generate, generate_all

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights(scrambled: Callable[..., Weights]) -> Weights:
    """Those that both actors serve."""
    return scrambled(0)


@pytest.fixture(scope="module")
def actor(rollout_actor: Any, weights: Weights) -> Any:
    """The shared actor, serving version 1, whatever it served to others."""
    ray.get(rollout_actor.forget_run.remote())
    load(rollout_actor, weights, 1)
    return rollout_actor


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Qwen2.5-VL with window attention, a head of its own and as many words as the real Qwen2 has, saved."""
    tiny = AutoConfig.from_pretrained(tiny_model_path())
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "out_hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        tie_word_embeddings=False,
        **{name: getattr(tiny, name) for name in ids},
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_model_path()).save_pretrained(folder)
    model.name_or_path = str(folder)
    return model


@pytest.fixture(scope="module")
def doomed_actor(ray_cluster: None, engine_config: Config, other_model: Any) -> Any:
    """Another actor, whose engine will be killed; started early, so that it starts beside the shared one."""
    settings = {"model": engine_config.model.model_copy(update={"path": other_model.name_or_path})}
    config = engine_config.model_copy(update=settings)
    return ray.remote(RolloutActor).options(num_cpus=0).remote(EngineSettings.of(config), 1, code_digest())


def load(actor: Any, weights: Weights, version: int) -> None:
    update = write_buckets(weights.items(), version, 2**20, ray.put)
    report = ray.get(actor.load_weights.remote(update), timeout=PATIENCE)
    assert report.version == version


def test_nothing_is_served_before_the_first_weights(
    doomed_actor: Any, rollout_actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    if ray.get(rollout_actor.status.remote()).version is None:
        with pytest.raises(NotServingError, match="no weights have been loaded yet"):
            generate(rollout_actor, "too early", make_prompt("a"), Sampling(2, 4, 1.0))


def test_a_group_comes_back_as_flat_arrays(actor: Any, make_prompt: Callable[[str], Prompt]) -> None:
    found = generate(actor, "flat", make_prompt("a"), Sampling(group_size=5, max_tokens=20, temperature=1.0))
    vocabulary = load_vocabulary(tiny_model_path())
    total = int(found.lengths.sum())

    assert (found.prompt_id, found.actor) == ("a", "rollout-0")
    assert found.lengths.shape == found.truncated.shape == (5,)
    assert found.token_ids.shape == found.rollout_logprobs.shape == found.versions.shape == (total,)
    dtypes = (found.token_ids, found.rollout_logprobs, found.versions, found.lengths, found.truncated)
    assert [str(array.dtype) for array in dtypes] == ["int32", "float32", "int32", "int32", "bool"]
    assert set(found.versions) == {1}
    assert np.all(found.rollout_logprobs < 0)
    assert found.visual_tokens == 9  # 84 pixels are 6 patches of 14, merged two by two: 3 x 3
    assert 0 < found.span.seconds < PATIENCE
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    ends = np.cumsum(found.lengths)
    for end, length, truncated, text in zip(ends, found.lengths, found.truncated, found.texts, strict=True):
        ids = found.token_ids[end - length : end].tolist()
        assert truncated == (ids[-1] not in vocabulary.stop)
        assert truncated <= (length == 20)
        assert not set(ids[:-1]) & set(vocabulary.stop)
        assert text == tokenizer.decode(ids[: length - (not truncated)])


def test_banned_tokens_are_never_sampled_and_stop_tokens_stop(
    actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    vocabulary = load_vocabulary(tiny_model_path())
    found = generate(actor, "banned", make_prompt("a"), Sampling(40, 250, temperature=2.0))
    # A scrambled model is nearly indifferent, so each allowed token is met about four times or more.
    assert found.token_ids.size > 4 * vocabulary.size
    assert len(set(found.token_ids.tolist())) > vocabulary.size / 2
    assert not set(found.token_ids.tolist()) & set(vocabulary.banned)
    assert set(vocabulary.stop) & set(found.token_ids.tolist())


def test_greedy_is_repeatable_and_one_at_a_time(
    actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    one = generate(actor, "greedy", make_prompt("a"), Sampling(1, 30, temperature=0.0))
    again = generate(actor, "greedy again", make_prompt("a"), Sampling(1, 30, temperature=0.0))
    assert again.token_ids.tolist() == one.token_ids.tolist()
    assert np.all(np.isfinite(one.rollout_logprobs))
    with pytest.raises(ValueError, match="greedy"):
        generate(actor, "greedy group", make_prompt("a"), Sampling(3, 30, temperature=0.0))


def test_a_seed_repeats_a_prompt_but_not_its_neighbour(
    actor: Any, make_prompt: Callable[[str], Prompt], weights: Weights
) -> None:
    sampling = Sampling(4, 20, temperature=1.0, seed=11)
    first = generate(actor, "seeded", make_prompt("a"), sampling)
    same_prompt = make_prompt("a")
    neighbour = generate(actor, "neighbour", replace(same_prompt, id="b"), sampling)
    load(actor, weights, 2)
    again = generate(actor, "seeded again", same_prompt, sampling)
    assert set(again.versions) == {2}
    assert again.token_ids.tolist() == first.token_ids.tolist()
    assert neighbour.token_ids.tolist() != first.token_ids.tolist()
    assert len(set(first.texts)) > 1


def test_seeded_prompts_that_are_scheduled_in_pieces_end_no_engine(
    actor: Any, make_prompt: Callable[[str], Prompt]
) -> None:
    """So many that an engine on a CPU, whose steps have 4,096 tokens at most, must cut some of them."""
    prompt = make_prompt("a")
    token_ids = np.concatenate([prompt.token_ids, np.tile(prompt.token_ids[-8:], 12)])
    # Other images, or the prefix cache would have all but the first.
    prompts = [
        replace(prompt, id=str(i), token_ids=token_ids, image=np.roll(np.asarray(prompt.image), 3 * i, axis=0))
        for i in range(60)
    ]
    assert 60 * token_ids.size > 2 * 4096
    found = generate_all(actor, prompts, Sampling(2, 4, temperature=1.0, seed=11))
    assert all(completions.lengths.size == 2 for completions in found)


def test_many_prompts_at_once_keep_their_images_apart(
    actor: Any, make_prompt: Callable[[str], Prompt], transformers_logprobs: Any, weights: Weights
) -> None:
    prompts = [make_prompt(name) for name in "abcdefgh"]
    found = generate_all(actor, prompts, Sampling(2, 8, 1.0))
    for prompt, completions in zip(prompts, found, strict=True):
        assert completions.prompt_id == prompt.id
        length = completions.lengths[0]
        expected = transformers_logprobs(weights, prompt, completions.token_ids[:length])
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
    stranger = ray.remote(RolloutActor).options(num_cpus=0).remote(EngineSettings.of(engine_config), 2, "0" * 32)
    with pytest.raises(ray.exceptions.RayActorError, match="runs other code of medr1_ray"):
        ray.get(stranger.ping.remote())


def test_engine_and_learner_agree_for_qwen2_5_vl_with_the_real_number_of_words(
    doomed_actor: Any, other_model: Any, make_prompt: Callable[[str], Prompt], scrambled: Callable[..., Weights]
) -> None:
    weights = scrambled(1, start=dict(other_model.named_parameters()))
    load(doomed_actor, weights, 1)
    with torch.no_grad():
        for name, parameter in other_model.named_parameters():
            parameter.copy_(weights[name])
    square = make_prompt("square")
    prompts = [square, replace(make_prompt("wide"), image=np.tile(square.image, (1, 2, 1))[:, :140])]
    sampling = Sampling(4, 10, temperature=0.7)
    found = generate_all(doomed_actor, prompts, sampling, timeout=PATIENCE)

    vocabulary = load_vocabulary(other_model.name_or_path)
    policy = Policy(other_model, vocabulary, sampling.temperature)
    images = ImagePatcher(tiny_model_path())([prompt.image for prompt in prompts])
    groups = list(zip(prompts, found, strict=True))
    batch = pack_groups(groups, images, vocabulary.image_pad, vocabulary.pad, policy.prompt_positions)
    with torch.no_grad():
        expected = policy(batch).numpy()
    assert [completions.visual_tokens for completions in found] == [9, 15]  # 84 and 140 pixels: 3 and 5 of 28
    assert len(set(np.concatenate([completions.token_ids for completions in found]).tolist())) > 40
    assert np.abs(expected - np.concatenate([completions.rollout_logprobs for completions in found])).max() <= 1e-4


def test_a_dead_engine_is_a_clear_error_and_no_hang(
    doomed_actor: Any, other_model: Any, engine_config: Config, make_prompt: Callable[[str], Prompt]
) -> None:
    weights = dict(other_model.named_parameters())
    load(doomed_actor, weights, 2)
    engine = engine_process(engine_config.run.dir / "logs", "rollout-1")
    with frozen(engine):  # it has not finished before it dies
        running = begin(doomed_actor, "running", make_prompt("a"), Sampling(32, 300, temperature=1.0))
        while ray.get(doomed_actor.status.remote()).running_requests != 1:
            assert not ray.wait([running], timeout=0.1)[0]
        os.kill(engine, signal.SIGKILL)
    calls = (
        lambda: running,
        lambda: begin(doomed_actor, "after", make_prompt("a"), Sampling(2, 4, 1.0)),
        lambda: doomed_actor.ping.remote(),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="engine process died"):
            ray.get(call(), timeout=PATIENCE)
    with pytest.raises(EngineLostError, match="engine process died"):
        load(doomed_actor, weights, 3)
    with pytest.raises(EngineLostError, match="engine process died"):
        ray.get(doomed_actor.weight_member.remote(), timeout=PATIENCE)


def test_likelihoods_are_those_of_transformers(
    actor: Any,
    make_prompt: Callable[[str], Prompt],
    scrambled: Callable[..., Weights],
    tmp_path: Path,
) -> None:
    weights = scrambled(7)
    save_file({checkpoint_name(name): tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_model_path() / "config.json").read_text())
    update = write_buckets(checkpoint_tensors(tmp_path), 10, 2**22, ray.put)
    ray.get(actor.load_weights.remote(update))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    texts = continuations(
        lambda text: tokenizer.encode(text, add_special_tokens=False), [" CT.", " magnetic resonance imaging."]
    )
    prompt = make_prompt("likelihood")
    found = ray.get(actor.likelihoods.remote("likelihoods", prompt, texts))

    model = AutoModelForImageTextToText.from_pretrained(tiny_model_path(), dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    processor = AutoProcessor.from_pretrained(tiny_model_path())
    image = processor.image_processor(images=[Image.fromarray(prompt.image)], return_tensors="pt")
    visual, pad = int(image["image_grid_thw"].prod()) // 4, model.config.image_token_id
    ids = [i for token in prompt.token_ids.tolist() for i in [token] * (visual if token == pad else 1)]
    expected = []
    for text in np.split(texts.token_ids, np.cumsum(texts.lengths)[:-1]):
        tokens = torch.tensor([ids + text.tolist()])
        with torch.no_grad():
            logits = model(input_ids=tokens, mm_token_type_ids=(tokens == pad).int(), **image).logits
        logprobs = logits[0, len(ids) - 1 : -1].log_softmax(-1)
        expected.append(float(logprobs.gather(1, torch.tensor(text)[:, None].long()).sum()))
    assert found.logprobs == pytest.approx(expected, abs=1e-3)
    assert found.lengths.tolist() == texts.lengths.tolist()
