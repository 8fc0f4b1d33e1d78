"""Make the stack importable with a CPU build of torch and PyPI's CUDA builds of its companion packages.

PyPI's torchvision, torchaudio and torchcodec for x86-64 are built for CUDA and do not load without it:

- `import torchvision` fails ("operator torchvision::nms does not exist"), and with it transformers' Qwen2-VL
  processor and vLLM's model registry. Declaring the operators that its Python code decorates is enough: nothing
  here calls them, and torchvision rejects such calls with a clear error of its own.
- `import torchaudio` and `import torchcodec` fail too, and transformers and vLLM import them wherever they are
  installed. Nothing here needs audio or video, so both packages are made to look absent, which both importers handle.

`repair_imports` is an entry point in the group `torch.backends`, so it runs at the end of every `import torch`: in
Ray workers, in vLLM's engine process and in its registry subprocess. An entry point in `vllm.general_plugins` would
run too late for that subprocess.
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

_declared: list[torch.library.Library] = []  # kept alive: a collected Library withdraws its declarations


def repair_imports() -> None:
    """Declare torchvision's operators and hide torchaudio and torchcodec, each only if its library does not load.

    Does nothing under a torch built for an accelerator. Imports none of the three packages, since they import torch
    themselves and this function runs inside `import torch`.
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
            sys.modules[package] = None  # type: ignore[assignment]  # Python's marker of a module that cannot be found
            _forget(package)


def _forget(package: str) -> None:
    """Clear the cache in which transformers, if it was imported before torch, holds the package as available."""
    transformers = sys.modules.get("transformers.utils.import_utils")
    if transformers is not None:
        getattr(transformers, f"is_{package}_available").cache_clear()


def _is_broken(package: str, pattern: str) -> bool:
    """Return whether `package` is installed with a library that does not load (one that does stays loaded)."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return False
    for path in Path(spec.submodule_search_locations[0]).glob(pattern):
        try:
            torch.ops.load_library(path)
        except OSError:
            return True
    return False
