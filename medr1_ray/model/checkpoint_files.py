"""Checkpoint folders: locating, identifying and loading them. `checkpoint_saving.py` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from medr1_ray.config import ModelSettings, tiny_model_path
from medr1_ray.model.family import EMBEDDING, HEAD, VISION, checkpoint_name
from medr1_ray.model.weight_files import is_tied

if TYPE_CHECKING:
    # It takes a second to import, and the commands import this module for paths only.
    import torch

_READ_BYTES = 2**24


def resolve_checkpoint(model: str) -> Path:
    """Return the absolute checkpoint folder of `model`: a run directory (its latest), a checkpoint folder, or `tiny`.

    The folder itself is checked by `folder.check.check_folder`.
    """
    if model == "tiny":
        return Path(tiny_model_path())
    path = Path(model)
    latest = path / "checkpoints" / "latest"
    if latest.exists():
        path = latest.parent / latest.read_text().strip()
    # A path that does not exist stays as it was given, for the error.
    return path.absolute() if path.exists() else path


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
    files: dict[str, Path] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), file)
    for name, file in files.items():
        with safe_open(file, framework="pt") as tensors:
            tensor = tensors.get_tensor(name)
        if not (name == HEAD and is_tied(checkpoint) and _is_the_embedding(tensor, files)):
            yield name, tensor


def _is_the_embedding(head: torch.Tensor, files: dict[str, Path]) -> bool:
    import torch

    (name,) = (name for name in files if checkpoint_name(name) == EMBEDDING)
    with safe_open(files[name], framework="pt") as tensors:
        return torch.equal(head, tensors.get_tensor(name))


def load_model(path: str | Path, dtype: torch.dtype, settings: ModelSettings) -> Any:
    """Load a checkpoint for training, on the CPU."""
    from transformers import AutoModelForImageTextToText

    from medr1_ray.model.attention import SHARED_PROMPT_ATTENTION

    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation={"text_config": SHARED_PROMPT_ATTENTION, "vision_config": settings.attention},
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
