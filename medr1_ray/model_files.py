"""Checkpoint folders: finding one, telling it by its weights, and reading its parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from medr1_ray import tiny

if TYPE_CHECKING:
    import torch

_READ_BYTES = 2**24


def resolve_checkpoint(model: str) -> Path:
    """The checkpoint folder of a run directory (its latest), a checkpoint folder, or `tiny`; absolute.

    Raises:
        ValueError: `model` is none of them.
    """
    if model == "tiny":
        return Path(tiny.model_path())
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
