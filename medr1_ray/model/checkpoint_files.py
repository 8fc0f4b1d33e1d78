"""Checkpoint folders: finding one, telling it by its weights, and reading its parameters."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText

from medr1_ray.config import ModelSettings, tiny_model_path
from medr1_ray.model.attention import SHARED_PROMPT_ATTENTION

if TYPE_CHECKING:
    import torch

_READ_BYTES = 2**24


def resolve_checkpoint(model: str) -> Path:
    """The checkpoint folder of a run directory (its latest), a checkpoint folder, or `tiny`; absolute.

    Raises:
        ValueError: `model` is none of them.
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
    """Raises ValueError for a folder without config.json or *.safetensors."""
    if not (path / "config.json").exists() or not any(path.glob("*.safetensors")):
        raise ValueError(
            f"model={str(path)!r} is no checkpoint: it must be a run's directory with a saved checkpoint, a Hugging "
            "Face folder with config.json and *.safetensors, or `tiny`"
        )


def checkpoint_digest(checkpoint: Path) -> str:
    """Hex BLAKE2b-128 over the weight files, in the order of their names."""
    state = hashlib.blake2b(digest_size=16)
    for file in sorted(checkpoint.glob("*.safetensors")):
        state.update(file.name.encode())
        with file.open("rb") as content:
            while block := content.read(_READ_BYTES):
                state.update(block)
    return state.hexdigest()


def checkpoint_tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of a checkpoint but a head that is tied to the embedding, which the engines make themselves."""
    settings = json.loads((checkpoint / "config.json").read_text())
    tied = settings.get("tie_word_embeddings", settings.get("text_config", {}).get("tie_word_embeddings", False))
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if not (tied and name == "lm_head.weight"):
                    yield name, tensors.get_tensor(name)


# What belongs to a checkpoint beside its weights and configs: tokenizer, processor, chat template.
COMPANION_SUFFIXES = (".json", ".jinja", ".txt", ".model")


WRITTEN_BY_US = ("config.json", "generation_config.json")


def load_model(path: str | Path, dtype: torch.dtype, settings: ModelSettings) -> Any:
    """Load a checkpoint for training, on the CPU.

    Raises ValueError for a model whose language model has sliding-window layers, which the shared prompt's mask does
    not know.
    """
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
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def is_frozen(settings: ModelSettings, name: str) -> bool:
    """Whether a parameter, by its name in the model without adapters, never changes in a run."""
    return not settings.train_vision_tower and name.startswith("model.visual.")


def save_model(model: Any, whole: dict[str, Tensor], source: Path, folder: Path) -> None:
    """Write `whole` (checkpoint name to tensor) as Hugging Face files into `folder`, with the model's configuration and
    what else belongs to the checkpoint `source` that it was loaded from."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(whole, folder, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    for file in source.iterdir():
        weights_index = file.name.endswith(".index.json")
        if file.suffix in COMPANION_SUFFIXES and file.name not in WRITTEN_BY_US and not weights_index:
            shutil.copyfile(file, folder / file.name)


def checkpoint_name(name: str) -> str:
    """A parameter's name in Hugging Face checkpoints of Qwen2-VL and Qwen2.5-VL, from its name in the model."""
    for inside, outside in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(inside):
            return outside + name.removeprefix(inside)
    return name
