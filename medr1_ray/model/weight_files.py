"""The weight files of a checkpoint folder, by their headers alone: which tensor is in which file, with what shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medr1_ray.base.json_files import read_mapping

SINGLE_FILE = "model.safetensors"
LEARNER_STATE = "learner_state"
"""The subfolder of a checkpoint of ours that only the learner reads."""
STATE_FILE_BYTES = 2**30
"""Of a file in it: once so much is ready, it is written."""

INDEX_FILE = "model.safetensors.index.json"

# A safetensors file begins with the length of its header, 8 bytes, and is refused by the library beyond this length.
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `dtype` as safetensors writes it (`BF16`)."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a checkpoint by name, as its files' headers describe them.

    Raises:
        ValueError: a file is missing, cut off, or not the one that the index names for a tensor.
    """
    found: dict[str, StoredTensor] = {}
    listed = read_index(folder)
    for file in weight_files(folder):
        for name, tensor in read_header(folder / file).items():
            if name != "__metadata__":
                found[name] = StoredTensor(file, str(tensor["dtype"]), tuple(tensor["shape"]))
    for name, file in listed.items():
        if name not in found:
            raise ValueError(f"{folder / file}: lacks the tensor {name!r}, which {INDEX_FILE} says it has; {_ANEW}")
    return found


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that transformers and vLLM read, sorted.

    Raises:
        ValueError: there are none, one is missing, or there are others, which not all readers would leave out.
    """
    present = {path.name for path in folder.glob("*.safetensors")}
    listed = set(read_index(folder).values())
    if not listed and SINGLE_FILE not in present:
        raise ValueError(
            f"{folder}: has {', '.join(sorted(present)[:3])}, but neither {SINGLE_FILE} nor {INDEX_FILE}, so that "
            f"transformers does not find the weights; {_ANEW}"
        )
    read = listed or {SINGLE_FILE}
    if missing := sorted(read - present):
        raise ValueError(f"{folder / missing[0]}: is missing ({INDEX_FILE} lists {len(read)} files); {_ANEW}")
    if extra := sorted(present - read):
        raise ValueError(f"{folder / extra[0]}: is not one of the model's weight files; move it out of the folder")
    return sorted(read)


def read_index(folder: Path) -> dict[str, str]:
    """Return the file of each tensor by the index, empty where there is none. Raises ValueError if it is damaged."""
    path = folder / INDEX_FILE
    if not path.exists():
        return {}
    index = read_json(path)
    weight_map = index.get("weight_map")
    # vLLM leaves out every file that is not listed, and so loads nothing by an empty list.
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: has no weight_map; {_ANEW}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file:
            raise ValueError(f"{path}: the file of {name!r} in weight_map is {file!r}; allowed: a file's name; {_ANEW}")
    return weight_map


def is_tied(checkpoint: Path) -> bool:
    """Return whether config.json says that the head is the embedding.

    By the rule of transformers 5 and vLLM, a head of its own in the files, with other values, counts all the same.
    """
    settings = json.loads((checkpoint / "config.json").read_text())
    # Released checkpoints have the key at the top; transformers 4.52 and later also write it into text_config.
    of_text = settings.get("text_config") or {}
    return bool(settings.get("tie_word_embeddings") or of_text.get("tie_word_embeddings"))


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, `__metadata__` included. Raises ValueError if the file is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 0 < length <= min(size - _LENGTH_BYTES, _LONGEST_HEADER):
            raise ValueError(f"{path}: is cut off or not a safetensors file ({size:,} bytes); {_ANEW}")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            if not all(isinstance(tensor["dtype"], str) and isinstance(tensor["shape"], list) for tensor in tensors):
                raise ValueError("a tensor without type or shape")
            whole = _LENGTH_BYTES + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: is not a safetensors file; {_ANEW}") from error
    if size != whole:
        raise ValueError(f"{path}: has {size:,} bytes where its header says {whole:,}; {_ANEW}")
    return header


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's mapping. Raises ValueError if it is not a mapping in JSON, or not in plain UTF-8."""
    # Python's json takes more encodings from bytes than transformers, which would fail later on what passes here.
    if (encoding := json.detect_encoding(path.read_bytes())) != "utf-8":
        raise ValueError(f"{path}: is in {encoding}; save it in UTF-8 without a byte order mark")
    return read_mapping(path, _ANEW)


_ANEW = "copy or download the checkpoint again"
