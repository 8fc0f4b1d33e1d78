"""Models, prompts and run settings of the benchmarks, generated from a seed; nothing is downloaded.

`tiny` is the model that ships; `bench30m` is a Qwen2-VL of 30 million random weights at Med-R1's image size (392
pixels, 196 visual tokens); `qwen2vl_2b` has Qwen2-VL-2B's full shape. All three ban the tokens that end a completion,
so that every completion has exactly `max_tokens` tokens: neither side samples the tokens that `config.json` names as
an image's start and end, and here those are the ids of `<|endoftext|>` and `<|im_end|>`.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.encoding import Encoder, PromptEncoder
from medr1_ray.data.stream import PromptStream
from medr1_ray.learner.batching import deal_out, update_requests
from medr1_ray.learner.messages import BatchSize, MiniBatch, UpdateRequest
from medr1_ray.model import packing
from medr1_ray.model.family import checkpoint_name, family_of
from medr1_ray.rewards.advantages import group_advantages
from medr1_ray.types import Completions, Group, Prompt, Rewards, Span

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "runs" / "benchmarks"
IMAGE_SIZE = {"tiny": 84, "bench30m": 392, "qwen2vl_2b": 392}
VISUAL_TOKENS = {"tiny": 9, "bench30m": 196, "qwen2vl_2b": 196}
SEED = 0


@dataclass(frozen=True)
class Shape:
    """Size of one benchmark case: model, prompts per step, completions per prompt, tokens per completion."""

    model: str
    prompts: int
    group_size: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.model} {self.prompts} x G={self.group_size} x {self.tokens} tokens"


def checkpoint(model: str) -> Path:
    """Return the folder of a model whose completions never end early, creating it if it is missing.

    `qwen2vl_2b` has only names and shapes: its weight file is sparse, and is to be loaded with `load_format: dummy`.
    """
    folder = WORK / "models" / model
    if (folder / "model.safetensors").exists():
        return folder
    if model == "bench30m":
        config = bench30m_config()
    else:
        source = tiny_model_path() if model == "tiny" else ROOT / "configs" / "models" / "qwen2_vl_2b"
        config = Qwen2VLConfig.from_pretrained(source)
    write_all_but_weights(folder, config)
    if model == "tiny":
        shutil.copyfile(tiny_model_path() / "model.safetensors", folder / "model.safetensors")
    elif model == "bench30m":
        torch.manual_seed(SEED)
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
        shutil.copyfile(tiny_model_path() / "generation_config.json", folder / "generation_config.json")
    else:
        _write_hole(folder / "model.safetensors", dict(parameter_shapes(config)))
    return folder


def write_all_but_weights(folder: Path, config: Any) -> None:
    """Write a model's folder without its weights: the tiny model's tokenizer and processor, and a configuration by
    which no completion ends early."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in tiny_model_path().iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, folder / file.name)
    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    # The image and video tokens are banned in any case; the other two ids are the ones that end a completion.
    config.image_token_id, config.video_token_id = known["<|image_pad|>"], known["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = known["<|endoftext|>"], known["<|im_end|>"]
    # Ids of other tokenizers would end some completions by chance.
    text = config.get_text_config()
    text.bos_token_id, text.eos_token_id, text.pad_token_id = None, known["<|im_end|>"], known["<|endoftext|>"]
    config.architectures = [family_of(config, folder).architecture]
    config.save_pretrained(folder)


def parameter_shapes(config: Any) -> Iterator[tuple[str, torch.Size]]:
    """Yield the checkpoint name and the shape of every parameter, without allocating any."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        yield checkpoint_name(name), parameter.shape


def _write_hole(path: Path, shapes: Mapping[str, torch.Size]) -> None:
    """Write a sparse safetensors file of bfloat16 zeros, which takes no disk space."""
    with path.open("wb") as file:
        file.write(header_of(shapes))
        file.truncate(file.tell() + 2 * sum(shape.numel() for shape in shapes.values()))


def header_of(shapes: Mapping[str, torch.Size]) -> bytes:
    """Return what begins a safetensors file of bfloat16 tensors, which follow in this order."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def bench30m_config() -> Qwen2VLConfig:
    """Return a config of hidden size 512 with 8 layers, a vision tower of depth 4 and the tiny model's tokenizer."""
    tiny = json.loads((tiny_model_path() / "config.json").read_text())
    text = {
        **tiny["text_config"],
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_window_layers": 8,
        "layer_types": ["full_attention"] * 8,
        "initializer_range": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
    }
    vision = {**tiny["vision_config"], "depth": 4, "embed_dim": 256, "num_heads": 4, "hidden_size": 512}
    return Qwen2VLConfig(**{**tiny, "text_config": text, "vision_config": vision})


def run_config(shape: Shape, name: str, overrides: Sequence[str] = ()) -> Config:
    """Return the settings of a run at this shape: Med-R1's objective on phantoms, with completions of full length.

    The reward is arbitrary (a checksum of the text), so that even the groups of an untrained model have advantages.
    """
    return load_config(
        [ROOT / "configs" / "bases" / "tiny_cpu.yaml"],
        [
            "mode=think",
            "data.format=phantoms",
            f"data.root={WORK / 'phantoms'}",
            "data.phantom_images=64",
            "data.eval_questions=8",
            f"data.image_size={IMAGE_SIZE[shape.model]}",
            f"run.dir={WORK / 'runs' / name}",
            "run.rollouts_every=0",
            f"model.path={checkpoint(shape.model)}",
            "train.steps=1000",
            f"train.prompts_per_step={shape.prompts}",
            f"train.group_size={shape.group_size}",
            f"rollout.max_tokens={shape.tokens}",
            "reward.functions={benchmarks.helpers.rewards:parity: 1.0}",
            "learner.learning_rate=1e-6",
            "loss.kl_beta=0.04",
            *overrides,
        ],
    )


def open_stream(config: Config, encoder: Encoder | None = None) -> PromptStream:
    """Return the stream of the run's training prompts, from its beginning."""
    return PromptStream(open_dataset(config.data).train, encoder or PromptEncoder.of(config), config.train.seed)


def random_groups(config: Config, shape: Shape) -> list[Group]:
    """Return scored groups with random completions of full length, as input to the parts that follow generation."""
    random = np.random.default_rng(SEED)
    return [_group(prompt, shape, random) for prompt in open_stream(config).take(shape.prompts)]


def update_request(config: Config, groups: Sequence[Group], shape: Shape, plain: bool = False) -> UpdateRequest:
    """Return the driver's update request to a single learner rank.

    With `plain`, whole groups are dealt out by the length of their plain rows (one per completion), so that
    micro-batches have as many tokens on both sides.
    """
    completions = shape.prompts * shape.group_size
    batch = BatchSize(completions, completions * shape.tokens, shape.tokens)
    if not plain:
        (request,), _ = update_requests([groups], [batch], config.learner, 0)
        return request
    rows = [packing.row_tokens(group.prompt, group.completions) for group in groups]
    prompts = [row - shape.group_size * shape.tokens for row in rows]
    lengths = [shape.group_size * (prompt + shape.tokens) for prompt in prompts]
    (micro_batches,) = deal_out(lengths, 1, config.learner.micro_batch_tokens)
    return UpdateRequest(0, tuple(groups), (MiniBatch(tuple(micro_batches), batch),))


def tensors_of(config: Config) -> dict[str, torch.Tensor]:
    """Return tensors with the model's parameter names and shapes, in its compute dtype, with every page written."""
    dtype = getattr(torch, config.model.dtype)
    shapes = parameter_shapes(Qwen2VLConfig.from_pretrained(config.model.folder))
    return {name: torch.full(shape, 0.01, dtype=dtype) for name, shape in shapes}


def _group(prompt: Prompt, shape: Shape, random: np.random.Generator) -> Group:
    size, total = shape.group_size, shape.group_size * shape.tokens
    span = Span("benchmark", "rollout", 0.0, 0.0)
    rewards = np.arange(size, dtype=np.float32) % 2
    completions = Completions(
        prompt_id=prompt.id,
        actor="benchmark",
        token_ids=random.integers(10, 400, total).astype(np.int32),
        rollout_logprobs=np.full(total, -6.0, np.float32),
        versions=np.zeros(total, np.int32),
        lengths=np.full(size, shape.tokens, np.int32),
        truncated=np.ones(size, bool),
        texts=("",) * size,
        visual_tokens=VISUAL_TOKENS[shape.model],
        span=span,
    )
    no_answers: Any = (None,) * size
    scored = Rewards(
        prompt.id, ("parity",), rewards[:, None], rewards, rewards > 0, rewards > 0, no_answers, span
    )
    return Group(prompt, completions, scored, group_advantages(rewards, std=True))
