"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: adding them, disabling them, merging them, and saving them.

Engines get the adapters and compute with them (`weights/engine/adapters.py`); checkpoints also hold merged weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medr1_ray.config import LoraSettings
from medr1_ray.model.family import LANGUAGE, VISION

ADAPTER_FOLDER = "adapter"
"""The subfolder of a checkpoint that holds the adapters alone, in peft's format."""

# peft turns a layer's `x.weight` into `x.base_layer.weight` and adds `x.lora_A.default.weight` and the same for B.
_ADAPTER = ".lora_"
_BASE = ".base_layer"
_NAME = ".default"


class Adapters:
    """Adapters on every linear layer of the language model and, with `vision`, of the vision tower.

    The model is changed in place: its own parameters are frozen, and the adapters' B starts at 0, so that the model's
    output is unchanged. `seed` determines A, so that all ranks start from the same values.

    Raises ValueError if peft is not installed.
    """

    def __init__(self, model: Any, settings: LoraSettings, *, vision: bool, seed: int) -> None:
        try:
            import peft
        except ImportError as error:
            raise ValueError(
                f"model.lora needs the package peft ({error}); pip install 'medr1_ray[lora]', or set model.lora=null"
            ) from error
        towers = (LANGUAGE, VISION) if vision else (LANGUAGE,)
        # No dropout: engine and learner must agree on log-probabilities.
        lora = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=[
                name
                for name, module in model.named_modules()
                if name.startswith(towers) and isinstance(module, nn.Linear)
            ],
        )
        # Seeding must not affect other random numbers. No devices: the model is still on the CPU.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # By default peft keeps the adapters of a bfloat16 model in float32; here DeepSpeed holds float32 masters.
            self._peft: Any = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
        self._model = model
        self._scale = settings.alpha / settings.rank

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the adapters are disabled."""
        context: AbstractContextManager[None] = self._peft.disable_adapter()
        return context

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the model's own parameters, which are frozen, under the names that they have without adapters."""
        for name, parameter in self._model.named_parameters():
            if _ADAPTER not in name:
                yield name.replace(_BASE, ""), parameter

    def factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the factors of all layers: `<layer>.lora_A.weight` [rank, inputs], `<layer>.lora_B.weight` [outputs,
        rank]."""
        for name, parameter in self._model.named_parameters():
            if _ADAPTER in name:
                yield name.replace(_NAME, ""), parameter

    def merged(
        self, weights: Iterable[tuple[str, Tensor]], factors: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield whole weights with the factors merged in, all in float32: W + alpha / rank * B A.

        In bfloat16 every change would be lost that is smaller than half a unit in the last place of its weight.
        """
        for name, weight in weights:
            layer, whole = name.removesuffix(".weight"), weight.float()
            # Norms, biases and embeddings have no adapters.
            if f"{layer}{_ADAPTER}A.weight" in factors:
                a, b = (factors[f"{layer}{_ADAPTER}{side}.weight"].to(whole) for side in "AB")
                whole = whole + self._scale * b @ a
            yield name, whole

    def save(self, factors: Mapping[str, Tensor], folder: Path) -> None:
        """Write the factors as peft's `PeftModel.from_pretrained` loads them."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self._peft.peft_config["default"].save_pretrained(folder)
        tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in factors.items()}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
