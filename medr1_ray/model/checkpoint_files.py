"""Checkpoint folders: locating, identifying, loading and saving them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from medr1_ray.config import ModelSettings, tiny_model_path
from medr1_ray.model.family import CHECKPOINT_PREFIXES, VISION

_READ_BYTES = 2**24


def resolve_checkpoint(model: str) -> Path:
    """Return the absolute checkpoint folder of `model`: a run directory (its latest), a checkpoint folder, or `tiny`.

    Raises:
        ValueError: `model` is none of these.
    """
    if model == "tiny":
        return Path(tiny_model_path())
    path = Path(model)
    latest = path / "checkpoints" / "latest"
    if latest.exists():
        path = latest.parent / latest.read_text().strip()
    require_checkpoint(path)
    return path.absolute()


def require_checkpoint(path: Path) -> None:
    """Raise ValueError for a folder without config.json or *.safetensors."""
    if not (path / "config.json").exists() or not any(path.glob("*.safetensors")):
        raise ValueError(
            f"model={str(path)!r} is not a checkpoint: give a run's directory with a saved checkpoint, a Hugging "
            "Face folder with config.json and *.safetensors, or `tiny`"
        )


def checkpoint_digest(checkpoint: Path) -> str:
    """Return the hex BLAKE2b-128 digest of the weight files' names and contents, in the order of their names."""
    state = hashlib.blake2b(digest_size=16)
    for file in sorted(checkpoint.glob("*.safetensors")):
        state.update(file.name.encode())
        with file.open("rb") as content:
            while block := content.read(_READ_BYTES):
                state.update(block)
    return state.hexdigest()


def checkpoint_tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter of a checkpoint, except a head tied to the embedding, which engines tie themselves."""
    settings = json.loads((checkpoint / "config.json").read_text())
    # Released checkpoints have the key at the top; transformers 5 also writes it into text_config.
    tied = settings.get("tie_word_embeddings", settings.get("text_config", {}).get("tie_word_embeddings", False))
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if not (tied and name == "lm_head.weight"):
                    yield name, tensors.get_tensor(name)


# Files of a checkpoint in addition to weights and configs: tokenizer, processor, chat template.
COMPANION_SUFFIXES = (".json", ".jinja", ".txt", ".model")


# Not copied from the source: they would replace what `save_pretrained` has just written.
WRITTEN_BY_US = ("config.json", "generation_config.json")


def load_model(path: str | Path, dtype: torch.dtype, settings: ModelSettings) -> Any:
    """Load a checkpoint for training, on the CPU.

    Raises ValueError if the language model has sliding-window layers, which the shared prompt's mask does not support.
    """
    # Not at the top: it takes seconds, and the driver and the commands import this module for names and paths only.
    from transformers import AutoModelForImageTextToText

    from medr1_ray.model.attention import SHARED_PROMPT_ATTENTION

    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation={"text_config": SHARED_PROMPT_ATTENTION, "vision_config": settings.attention},
    )
    if "sliding_attention" in getattr(model.config.get_text_config(), "layer_types", ()):
        raise ValueError(
            f"model.path={str(path)!r}: its language model has sliding-window layers, which the learner does not "
            "support; set use_sliding_window to false in its config.json"
        )
    model.model.visual.requires_grad_(settings.train_vision_tower)
    if settings.gradient_checkpointing:
        # The reentrant form computes no gradients if a layer's input needs none, as in the first layer with adapters.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # `from_pretrained` returns the model in eval mode, in which transformers ignores gradient checkpointing.
    return model.train()


def is_frozen(settings: ModelSettings, name: str) -> bool:
    """Return whether a parameter, by its name in the model without adapters, never changes during a run."""
    return not settings.train_vision_tower and name.startswith(VISION)


def save_model(model: Any, whole: dict[str, Tensor], source: Path, folder: Path) -> None:
    """Write `whole` (checkpoint name to tensor) as Hugging Face files into `folder`.

    Adds the model's configuration, and copies tokenizer, processor and chat template from `source`, the checkpoint that
    the model was loaded from.
    """
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(whole, folder, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    for file in source.iterdir():
        # It lists the source's weight files, which may be split differently.
        weights_index = file.name.endswith(".index.json")
        if file.suffix in COMPANION_SUFFIXES and file.name not in WRITTEN_BY_US and not weights_index:
            shutil.copyfile(file, folder / file.name)


def checkpoint_name(name: str) -> str:
    """Return a parameter's name in Hugging Face checkpoints, given its name in the model."""
    for inside, outside in CHECKPOINT_PREFIXES:
        if name.startswith(inside):
            return outside + name.removeprefix(inside)
    return name
