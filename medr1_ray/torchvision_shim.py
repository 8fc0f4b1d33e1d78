"""Lets the stack import where PyPI's CUDA builds of torch's companions stand beside a CPU build of torch.

PyPI's torchvision, torchaudio and torchcodec for x86-64 are built for CUDA, and do not load without it:

- `import torchvision` dies ("operator torchvision::nms does not exist"), taking transformers' Qwen2-VL
  processor and vLLM's model registry with it. Declaring the operators that its Python code decorates is
  enough: nothing here calls them, and torchvision refuses such calls with a clear error of its own.
- `import torchaudio` and `import torchcodec` die too, and transformers and vLLM import them wherever they are
  installed. Nothing here needs sound or video, so the two are made to look absent, which both handle.

`repair_imports` is an entry point of the group `torch.backends`, so it runs at the end of every `import
torch`: in Ray workers, in vLLM's engine process and in its registry subprocess alike.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
HIDDEN_IF_BROKEN = {"torchaudio": "lib/_torchaudio*.so", "torchcodec": "libtorchcodec_image*.so"}

_declared: list[torch.library.Library] = []  # a Library undoes its declarations when it is collected


def repair_imports() -> None:
    """Declare torchvision's operators, hide torchaudio and torchcodec: each only where its library is broken.

    Does nothing under a torch built for an accelerator. Imports none of the three, since they import torch
    themselves and this runs inside `import torch`.
    """
    if torch.version.cuda or torch.version.hip or _declared:
        return
    if _is_broken("torchvision", "_C*.so"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in TORCHVISION_SCHEMAS:
            library.define(schema)
        _declared.append(library)
    for package, pattern in HIDDEN_IF_BROKEN.items():
        if _is_broken(package, pattern):
            sys.modules[package] = None  # type: ignore[assignment]  # Python's mark of a module not to be found
            _forget(package)


def _forget(package: str) -> None:
    """Where transformers was imported before torch, it remembers that the package is there."""
    transformers = sys.modules.get("transformers.utils.import_utils")
    if transformers is not None:
        getattr(transformers, f"is_{package}_available").cache_clear()


def _is_broken(package: str, pattern: str) -> bool:
    """Whether `package` is installed with a library that does not load (one that does is loaded early)."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return False
    for path in Path(spec.submodule_search_locations[0]).glob(pattern):
        try:
            torch.ops.load_library(path)
        except OSError:
            return True
    return False
