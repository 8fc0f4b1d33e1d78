"""What the integration tests share: starting it costs seconds."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch

from medr1_ray.code_digest import code_digest
from medr1_ray.config import Config
from medr1_ray.prompts import chat_messages
from medr1_ray.rollout_actor import RolloutActor
from medr1_ray.tiny import model_path
from medr1_ray.types import Prompt, Question


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
            "cluster": {"rollout_timeout_seconds": 120, "sync_timeout_seconds": 120},
        }
    )


@pytest.fixture(scope="session")
def rollout_actor(ray_cluster: None, engine_config: Config) -> Iterator[Any]:
    """One started rollout actor. A test that serves from it loads weights first, of a version of its own."""
    actor = ray.remote(RolloutActor).options(num_cpus=0).remote(engine_config, 0, code_digest())
    ray.get(actor.ping.remote())
    yield actor
    ray.get(actor.shutdown.remote())
    ray.kill(actor)


@pytest.fixture(scope="session")
def make_prompt() -> Callable[[str], Prompt]:
    """A prompt by id, with an image of coloured noise that follows from the id."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path())

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

    processor = AutoProcessor.from_pretrained(model_path())
    model = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32).eval()
    config = model.config
    banned = [
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
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

    model = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32)
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
