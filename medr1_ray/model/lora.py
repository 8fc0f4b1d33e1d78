"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: adding them, disabling them, and merging them into weights.

Engines and checkpoints only see merged weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from medr1_ray.config import LoraSettings
from medr1_ray.model.family import LANGUAGE, VISION

Named = Iterable[tuple[str, nn.Parameter]]

# peft turns a layer's `x.weight` into `x.base_layer.weight` and adds `x.lora_A.default.weight` and the same for B.
_ADAPTER = ".lora_"
_BASE = ".base_layer"


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
        """Yield the model's own parameters, under the names that they have without adapters."""
        for name, parameter in self._model.named_parameters():
            if _ADAPTER not in name:
                yield name.replace(_BASE, ""), parameter

    def merged(
        self, named: Named, whole: Callable[[Named], Iterator[tuple[str, Tensor]]]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters in `named` as whole tensors, with adapters merged: W + alpha / rank * B A.

        Merging is computed in float32 and rounded to the parameter's dtype. `whole` gathers named parameters from their
        shards (`whole_parameters` in `learner/deepspeed_engine.py`), in which all ranks must take part.
        """
        chosen = dict(named)
        adapters = (pair for pair in self._model.named_parameters() if _ADAPTER in pair[0])
        wanted = (pair for pair in adapters if f"{pair[0].partition(_ADAPTER)[0]}.weight" in chosen)
        # Cloned, since a gathered tensor is valid only until the next one is requested.
        factors = {name: tensor.clone() for name, tensor in whole(wanted)}
        for name, tensor in whole(chosen.items()):
            a, b = (factors.get(f"{name.removesuffix('.weight')}{_ADAPTER}{side}.default.weight") for side in "AB")
            # Norms, biases and embeddings have no adapters.
            if a is not None and b is not None:
                tensor = (tensor.float() + self._scale * b.float() @ a.float()).to(tensor.dtype)
            yield name, tensor
