"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: which layers get them, the model without them, and the
weights with them merged in, which is all that engines and checkpoints see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from medr1_ray.config import LoraSettings

Named = Iterable[tuple[str, nn.Parameter]]

_ADAPTER = ".lora_"
_BASE = ".base_layer"


class Adapters:
    """Adapters on every linear layer of a model's language model, and of its vision tower if wanted.

    The model is changed in place: its own parameters are frozen, and the adapters' B starts at 0, so that the model is
    the one it was. `seed` decides A, so that all ranks start from the same.

    Raises ValueError where peft is not installed.
    """

    def __init__(self, model: Any, settings: LoraSettings, *, vision: bool, seed: int) -> None:
        try:
            import peft
        except ImportError as error:
            raise ValueError(
                f"model.lora needs the package peft ({error}); pip install 'medr1_ray[lora]', or model.lora=null"
            ) from error
        towers = ("model.language_model.", "model.visual.") if vision else ("model.language_model.",)
        # Without dropout: engine and learner must agree about log-probabilities.
        lora = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=[
                name
                for name, module in model.named_modules()
                if name.startswith(towers) and isinstance(module, nn.Linear)
            ],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peft: Any = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
        self._model = model
        self._scale = settings.alpha / settings.rank

    def off(self) -> AbstractContextManager[None]:
        """A context in which the model is the one that it was without adapters."""
        context: AbstractContextManager[None] = self._peft.disable_adapter()
        return context

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own parameters, by the names that they have without adapters."""
        for name, parameter in self._model.named_parameters():
            if _ADAPTER not in name:
                yield name.replace(_BASE, ""), parameter

    def merged(
        self, named: Named, whole: Callable[[Named], Iterator[tuple[str, Tensor]]]
    ) -> Iterator[tuple[str, Tensor]]:
        """These of `named_parameters` as whole tensors, W + alpha / rank * B A where there is an adapter, computed in
        float32 and rounded to the parameter's type.

        `whole` makes whole tensors of named parameters (`zero.whole_parameters`); all ranks must take part.
        """
        chosen = dict(named)
        adapters = (pair for pair in self._model.named_parameters() if _ADAPTER in pair[0])
        wanted = (pair for pair in adapters if f"{pair[0].partition(_ADAPTER)[0]}.weight" in chosen)
        factors = {name: tensor.clone() for name, tensor in whole(wanted)}
        for name, tensor in whole(chosen.items()):
            a, b = (factors.get(f"{name.removesuffix('.weight')}{_ADAPTER}{side}.default.weight") for side in "AB")
            if a is not None and b is not None:
                tensor = (tensor.float() + self._scale * b.float() @ a.float()).to(tensor.dtype)
            yield name, tensor
