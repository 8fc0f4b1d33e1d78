"""What the integration tests share: starting it costs seconds."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch

from medr1_ray.base.code_digest import code_digest
from medr1_ray.config import Config, tiny_model_path
from medr1_ray.data.prompt_templates import chat_messages
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.rewards.advantages import group_advantages
from medr1_ray.rollout.actor import RolloutActor
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.types import Completions, Group, Prompt, Question, Rewards, Span

# Ray gives its own server 30 s to start, in the processes that tests start as well.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "600")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster of two CPUs."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def engine_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a small engine for the tiny model."""
    return Config.model_validate(
        {
            "run": {"dir": tmp_path_factory.mktemp("engines")},
            "data": {"format": "phantoms", "root": "unused"},
            "train": {"steps": 1},
            "rollout": {
                "max_tokens": 300,
                "max_prompt_tokens": 200,
                "engine": {"kv_cache_memory_bytes": 64 * 2**20},
            },
            "cluster": {"rollout_timeout_seconds": 600, "sync_timeout_seconds": 600},
        }
    )


@pytest.fixture(scope="session")
def rollout_actor(ray_cluster: None, engine_config: Config) -> Iterator[Any]:
    """One started rollout actor. A test that serves from it loads weights first, of a version of its own."""
    actor = ray.remote(RolloutActor).options(num_cpus=0).remote(EngineSettings.of(engine_config), 0, code_digest())
    ray.get(actor.ping.remote())
    yield actor
    ray.get(actor.shutdown.remote())
    ray.kill(actor)


@pytest.fixture(scope="session")
def make_prompt() -> Callable[[str], Prompt]:
    """A prompt by id, with an image of coloured noise that follows from the id."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())

    def make(prompt_id: str) -> Prompt:
        question = Question(prompt_id, "", "Which modality?", ("CT", "MRI"), 0, "CT", "Modality", "none")
        text = tokenizer.apply_chat_template(
            chat_messages(question, "no_think"), tokenize=False, add_generation_prompt=True
        )
        noise = np.random.default_rng(list(prompt_id.encode())).integers(0, 256, (84, 84, 3), np.uint8)
        return Prompt(prompt_id, question, np.array(tokenizer.encode(text), np.int32), noise)

    return make


@pytest.fixture(scope="session")
def transformers_logprobs() -> Callable[..., np.ndarray]:
    """Log-probabilities by transformers alone: `(weights, prompt, completion, temperature) -> float32 [T]`."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model_path())
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_path(), dtype=torch.float32).eval()
    config = model.config
    banned = [
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
        processor.tokenizer.convert_tokens_to_ids("<|im_start|>"),
    ]

    @torch.no_grad()
    def score(weights: dict[str, torch.Tensor], prompt: Prompt, completion: Any, temperature: float = 1.0) -> Any:
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
        image = processor.image_processor(images=[Image.fromarray(prompt.image)], return_tensors="pt")
        visual = int(image["image_grid_thw"].prod()) // 4
        ids = [i for t in prompt.token_ids.tolist() for i in [t] * (visual if t == config.image_token_id else 1)]
        tokens = torch.tensor([ids + completion.tolist()])
        logits = model(
            input_ids=tokens, mm_token_type_ids=(tokens == config.image_token_id).int(), **image
        ).logits[0, len(ids) - 1 : -1]
        logits[:, banned] -= 100.0
        logprobs = (logits / temperature).log_softmax(-1)
        return logprobs.gather(1, torch.tensor(completion.tolist())[:, None])[:, 0].numpy()

    return score


@pytest.fixture(scope="session")
def start_weights() -> dict[str, torch.Tensor]:
    """The tiny model's parameters, under the names that the learner sends."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_model_path(), dtype=torch.float32)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="session")
def scrambled(start_weights: dict[str, torch.Tensor]) -> Callable[..., dict[str, torch.Tensor]]:
    """The tiny model's shape and scale with another function: the elements of each tensor in another order.

    `(seed, start=start_weights, only="")` scrambles the tensors of `start` whose name has `only` in it. Completions of
    such a model are long and varied.
    """

    def scramble(
        seed: int, start: dict[str, torch.Tensor] = start_weights, only: str = ""
    ) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape)
            if only in name
            else tensor
            for name, tensor in start.items()
        }

    return scramble


@pytest.fixture(scope="session")
def groups() -> list[Group]:
    """Recorded rollouts: seven prompts of two image sizes, one of them with equal rewards."""
    random = np.random.default_rng(0)
    vocabulary = load_vocabulary(tiny_model_path())
    return [_recorded_group(i, vocabulary, random) for i in range(7)]


def _recorded_group(number, vocabulary, random):
    size, span = 4, Span("test", "test", 0.0, 0.0)
    name = f"p{number}"
    ids = random.integers(10, 400, 12 + number).astype(np.int32)
    start, image_pad, end = vocabulary.vision_start, vocabulary.image_pad, vocabulary.banned[3]
    ids[3:6] = [start, image_pad, end]
    height, width = [(56, 56), (84, 56)][number % 2]
    lengths = random.integers(1, 5, size).astype(np.int32)
    tokens = random.integers(10, 400, lengths.sum()).astype(np.int32)
    rewards = np.float32([1, 1, 1, 1]) if number == 3 else np.float32([0, 1, 2, number % 3])
    return Group(
        Prompt(
            name,
            Question(name, "/none", "What?", ("x", "y"), 0, "CT", "modality recognition", "none"),
            ids,
            random.integers(0, 256, (height, width, 3), dtype=np.uint8),
        ),
        Completions(
            prompt_id=name,
            actor="rollout-0",
            token_ids=tokens,
            rollout_logprobs=random.normal(-6, 0.5, tokens.size).astype(np.float32),
            versions=np.zeros(tokens.size, np.int32),
            lengths=lengths,
            truncated=np.zeros(size, bool),
            texts=("",) * size,
            visual_tokens=height * width // 28**2,
            span=span,
        ),
        Rewards(
            name, ("accuracy",), rewards[:, None], rewards, rewards > 0, rewards > 0, ("A",) * size, span
        ),
        group_advantages(rewards, std=True),
    )
