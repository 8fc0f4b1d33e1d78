"""Writing a checkpoint: what its source was, with other weights.

Files that training does not change are copied byte for byte, and the weights get the names and files that they had in
the source, so that a checkpoint loads wherever its source did.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medr1_ray.base.manifest import MANIFEST_FILE
from medr1_ray.model.family import EMBEDDING, HEAD, checkpoint_name
from medr1_ray.model.weight_files import INDEX_FILE, StoredTensor, read_header, read_json, stored_tensors

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz"}
# The index is written anew. A model card describes the source; the others are those of a checkpoint of ours.
NOT_COPIED = {INDEX_FILE, MANIFEST_FILE, "README.md", "state.json", "medr1_ray.json"}
TEMPLATE_FOLDERS = ("chat_templates", "additional_chat_templates")

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def save_model(whole: Mapping[str, Tensor], source: Path, folder: Path) -> None:
    """Write the weights `whole` (by `checkpoint_name`) into `folder`, as the checkpoint in `source` has them.

    The weights keep the type they were trained in. Where the source's was another, its name in config.json is changed,
    and nothing else.
    """

    def tensor_of(name: str) -> Tensor:
        ours = checkpoint_name(name)
        # The source may hold a copy of the embedding as its head.
        return whole[ours] if ours in whole or ours != HEAD else whole[EMBEDDING].clone()

    stored = stored_tensors(source)
    dtypes = {whole[name].dtype for name in whole}
    copy_companions(source, folder)
    if len(dtypes) == 1 and any(_DTYPES[tensor.dtype] not in dtypes for tensor in stored.values()):
        _write_dtype(folder / "config.json", str(dtypes.pop()).removeprefix("torch."))
    _write_weights(stored, tensor_of, source, folder)


def rehearse_save(source: Path, folder: Path) -> None:
    """Write what `save_model` would into `folder`, with empty tensors. Raises OSError where that is not possible."""
    copy_companions(source, folder)
    _write_weights(stored_tensors(source), lambda _: torch.empty(0), source, folder)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy configuration, tokenizer, processor, templates and license: all that is not weights."""
    for file in source.iterdir():
        hidden = file.name.startswith(".")
        if file.is_file() and not hidden and file.suffix not in WEIGHT_SUFFIXES and file.name not in NOT_COPIED:
            shutil.copyfile(file, folder / file.name)
    for name in TEMPLATE_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)


def _write_weights(
    stored: Mapping[str, StoredTensor], tensor_of: Callable[[str], Tensor], source: Path, folder: Path
) -> None:
    from safetensors.torch import save_file

    total = 0
    for file in sorted({tensor.file for tensor in stored.values()}):
        tensors = {name: tensor_of(name).contiguous() for name, tensor in stored.items() if tensor.file == file}
        # Without it transformers refuses the file.
        metadata = read_header(source / file).get("__metadata__", {"format": "pt"})
        save_file(tensors, folder / file, metadata)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if (source / INDEX_FILE).exists():
        index = read_json(source / INDEX_FILE)
        changed = {**index, "metadata": {**index.get("metadata", {}), "total_size": total}}
        if changed == index:
            shutil.copyfile(source / INDEX_FILE, folder / INDEX_FILE)
        else:
            _write_json(folder / INDEX_FILE, changed)


def _write_dtype(path: Path, dtype: str) -> None:
    """Change the type that a configuration names, in each of its sections that names one."""
    settings = read_json(path)
    for section in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = dtype
    _write_json(path, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
