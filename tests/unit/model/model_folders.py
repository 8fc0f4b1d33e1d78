"""Model folders as people bring them, made from the tiny model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from medr1_ray.config import tiny_model_path


def tiny_in(folder: Path) -> Path:
    """A copy of the tiny model's folder."""
    return Path(shutil.copytree(tiny_model_path(), folder))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` work on a JSON file's mapping."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Let `change` work on the tensors of a folder with one weight file."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def in_shards(folder: Path) -> None:
    """Divide the weights of a folder into two files with an index, as `save_pretrained` does."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    of = {name: f"model-{1 + (i >= len(names) // 2):05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(of.values()):
        save_file({name: weights[name] for name in names if of[name] == file}, folder / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total, "total_parameters": 1}, "weight_map": of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def template_in_json_only(folder: Path) -> str:
    """Move the chat template where only the processor reads it, and give the tokenizer one that knows no image; return
    the first."""
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    joins_strings = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    change_json(folder / "tokenizer_config.json", lambda config: config.update(chat_template=joins_strings))
    return template


def as_qwens_tokenizer(folder: Path) -> None:
    """Let the tokenizer cut texts as those of published models do, and be of their class."""
    from transformers import AutoTokenizer

    # Without its settings transformers takes Qwen's class, by the model's type.
    (folder / "tokenizer_config.json").unlink()
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
