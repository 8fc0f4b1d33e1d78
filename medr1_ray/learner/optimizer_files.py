"""The optimizer's state on disk, in safetensors: readable whatever the number of ranks and ZeRO stage that wrote it.

    learner_state/optimizer.json                     the optimizer steps done, the size of every parameter, and where
                                                     their masters are
    learner_state/optimizer-<rank>-<n>.safetensors   float32 [length] `<kind>/<start>/<parameter>`: the elements of the
                                                     flattened parameter from `start` on; the kinds are in `KINDS`
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medr1_ray.model.family import checkpoint_name
from medr1_ray.model.weight_files import STATE_FILE_BYTES, stored_tensors

KINDS = ("master", "exp_avg", "exp_avg_sq")
"""The float32 copy that the optimizer changes, and Adam's two moments."""

Masters = Literal["here", "weights"]
"""Where the masters are: here, or in the Hugging Face files one folder up, where the float32 weights are the same."""

Fragment = tuple[str, int, dict[str, Tensor]]
"""Of a parameter, by its name: from which element on, and the elements by kind, float32 [length]."""

# The model's name in a policy, and so in the names of its parameters.
_POLICY = "model."
_SUMMARY_FILE = "optimizer.json"


def write_shard(folder: Path, rank: int, fragments: Iterable[Fragment]) -> list[str]:
    """Write a rank's fragments, on the CPU and each in memory of its own; return the names of the files."""
    from safetensors.torch import save_file

    names: list[str] = []
    batch: dict[str, Tensor] = {}

    def flush() -> None:
        if batch:
            names.append(f"optimizer-{rank:05}-{len(names):05}.safetensors")
            save_file(batch, folder / names[-1])
            batch.clear()

    for parameter, start, tensors in fragments:
        for kind, tensor in tensors.items():
            batch[f"{kind}/{start}/{parameter}"] = tensor
        if sum(tensor.nbytes for tensor in batch.values()) >= STATE_FILE_BYTES:
            flush()
    flush()
    return names


def write_summary(folder: Path, steps: int, sizes: Mapping[str, int], masters: Masters = "here") -> str:
    """Write the optimizer steps done and the parameters' sizes (elements); return the name of the file."""
    content = {"steps": steps, "masters": masters, "parameters": dict(sizes)}
    (folder / _SUMMARY_FILE).write_text(json.dumps(content, indent=1) + "\n")
    return _SUMMARY_FILE


class _Weight:
    """A tensor of the Hugging Face files, flattened."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        self.size = prod(file.get_slice(name).get_shape())

    def __getitem__(self, part: slice) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor.flatten()[part]


class OptimizerFiles:
    """What `write_shard` and `write_summary` of all ranks left in a folder.

    Raises ValueError where files are missing or damaged, or a parameter is not whole.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any]]] = defaultdict(list)
        try:
            summary = json.loads((folder / _SUMMARY_FILE).read_text())
            self.steps, self.sizes = int(summary["steps"]), {str(k): int(v) for k, v in summary["parameters"].items()}
            for path in sorted(folder.glob("optimizer-*.safetensors")):
                file = safe_open(path, "pt")
                for key in file.keys():  # noqa: SIM118  it is no mapping
                    kind, start, parameter = key.split("/", 2)
                    piece = file.get_slice(key)
                    self._pieces[parameter, kind].append((int(start), piece.get_shape()[0], piece))
            # Earlier versions wrote masters in any case, and did not say so.
            if summary.get("masters", "here") == "weights":
                self._add_weights()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, SafetensorError) as error:
            raise ValueError(
                f"{folder} holds no optimizer state that can be read ({error}); use another checkpoint"
            ) from None
        for parameter, size in self.sizes.items():
            for kind in KINDS:
                end = 0
                for start, length, _ in sorted(self._pieces[parameter, kind], key=lambda piece: piece[0]):
                    end = start + length if start == end else -1
                if end != size:
                    raise ValueError(
                        f"{folder} is not complete: {kind} of {parameter} does not have its {size} elements; use "
                        "another checkpoint"
                    )

    def _add_weights(self) -> None:
        from safetensors import safe_open

        checkpoint = self._folder.parent
        stored = stored_tensors(checkpoint)
        # The source may have other names for the same tensors.
        names = {checkpoint_name(name): name for name in stored}
        files = {file: safe_open(checkpoint / file, "pt") for file in {tensor.file for tensor in stored.values()}}
        for parameter in self.sizes:
            name = names.get(checkpoint_name(parameter.removeprefix(_POLICY)))
            if name is not None and stored[name].dtype == "F32":
                weight = _Weight(files[stored[name].file], name)
                self._pieces[parameter, "master"].append((0, weight.size, weight))

    def read(self, parameter: str, kind: str, start: int, length: int) -> Tensor:
        """Elements `start` to `start + length` of the flattened parameter, float32 on the CPU."""
        found = torch.empty(length)
        for begin, size, piece in self._pieces[parameter, kind]:
            low, high = max(start, begin), min(start + length, begin + size)
            if low < high:
                found[low - start : high - start] = piece[low - begin : high - begin]
        return found
