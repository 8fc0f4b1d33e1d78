"""A model of any shape with random weights, and questions with images, made below `run.dir`; nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.helpers.cluster.settings import Plan
from benchmarks.helpers.common import progress
from benchmarks.helpers.data.made import make
from benchmarks.helpers.shapes import header_of, parameter_shapes, write_all_but_weights
from medr1_ray.model.family import family_of
from medr1_ray.model.folder.check import stay_offline

IMAGES, QUESTIONS = 256, 512
_OF_SHAPE = "made_of.json"
# The scale to which Qwen2-VL's own weights are initialised.
_SCALE = 0.02
_LARGEST_IMAGE = 12_845_056
"""Pixels, as in Qwen2-VL's own processor; the tiny model's takes smaller ones alone."""


def make_what_is_missing(plan: Plan) -> None:
    """Make model and questions where the plan does not have the user's, or those of an earlier benchmark.

    Raises:
        ValueError: an earlier benchmark in `run.dir` made a model of another shape.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.makes_data and not (plan.out / "data").exists():
        progress(f"making {QUESTIONS} questions about {IMAGES} images in {plan.out / 'data'}")
        partial = plan.out / ".data.partial"
        make(partial, IMAGES, QUESTIONS)
        os.replace(partial, plan.out / "data")
    if plan.shape is None:
        return
    folder = plan.out / "model"
    if not folder.exists():
        progress(f"making a model of random weights in {folder}")
        partial = plan.out / ".model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        make_model(plan.shape, partial)
        os.replace(partial, folder)
    elif (folder / _OF_SHAPE).read_text() != (plan.shape / "config.json").read_text():
        raise ValueError(
            f"{folder} was made of another shape than model.shape={str(plan.shape)!r}; give another run.dir, or delete "
            "that folder"
        )


def make_model(shape: Path, folder: Path) -> None:
    """Write a checkpoint of random bfloat16 weights whose config.json is that of `shape`.

    It has a token for every row of the embeddings, of which those that end a completion are never sampled.

    Raises ValueError for a model of an unknown family.
    """
    stay_offline()
    config = AutoConfig.from_pretrained(shape)
    processor = family_of(config, shape).architecture.replace("ForConditionalGeneration", "Processor")
    write_all_but_weights(folder, config)
    with _changed(folder / "tokenizer.json") as tokenizer:
        vocabulary = tokenizer["model"]["vocab"]
        # Those that are not in it are numbered anew, after its last.
        vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        others = set(range(config.get_text_config().vocab_size)) - set(vocabulary.values())
        vocabulary |= {f"word{number}": number for number in sorted(others)}
    with _changed(folder / "processor_config.json") as settings:
        settings["processor_class"] = processor
        settings["image_processor"]["size"]["longest_edge"] = _LARGEST_IMAGE
    shapes = dict(parameter_shapes(config))
    torch.manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header_of(shapes))
        # One tensor at a time: the largest has half a gigabyte.
        for name, size in shapes.items():
            file.write(_random(name, size).view(torch.uint8).numpy().tobytes())
    shutil.copyfile(shape / "config.json", folder / _OF_SHAPE)


def _random(name: str, size: torch.Size) -> torch.Tensor:
    if len(size) > 1:
        return torch.empty(size, dtype=torch.bfloat16).normal_(0.0, _SCALE).flatten()
    # Norms and biases.
    return (torch.ones if name.endswith("weight") else torch.zeros)(size, dtype=torch.bfloat16)


@contextmanager
def _changed(path: Path) -> Iterator[dict[str, Any]]:
    """The content of a JSON file, which is written back."""
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
