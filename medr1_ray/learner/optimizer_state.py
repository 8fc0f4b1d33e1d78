"""The optimizer's state inside DeepSpeed (0.19.8), parameter by parameter: which part of each this rank has.

Every rank keeps a float32 copy and Adam's moments of its part of the trainable parameters, in a few flat tensors.
DeepSpeed's own checkpoints are pickles, which run code when they are loaded, and fit one number of ranks only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from medr1_ray.learner.optimizer_files import KINDS, Fragment, Masters, OptimizerFiles

# Each of DeepSpeed's optimizers has another name for them: ZeRO-3's, that of ZeRO-1 and 2, and, in place of the latter,
# the one for ZeRO-1 in bfloat16 with gradients summed in float32.
_FLATS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")


@dataclass(frozen=True)
class _Fragment:
    """Elements `start` to `start + length` of a flattened parameter, which are at `offset` in the flat tensor."""

    flat: Tensor
    offset: int
    start: int
    length: int


class OptimizerState:
    """The state of a DeepSpeed engine's optimizer, at ZeRO stage 1, 2 or 3.

    Args:
        rank: this rank's number.
        saved_as_they_are: the Hugging Face files have the trained weights themselves (no adapters merged in). In
            float32 those are the masters, which are then not saved once more.
    """

    def __init__(self, engine: Any, rank: int, *, saved_as_they_are: bool) -> None:
        self._engine = engine
        self._rank = rank
        whole = saved_as_they_are and all(parameter.dtype == torch.float32 for _, parameter in self._trainable())
        self._masters: Masters = "weights" if whole else "here"

    def copied(self) -> Iterator[Fragment]:
        """This rank's part, copied to main memory one fragment after the other. Takes part in no collective."""
        for name, parameter in self._trainable():
            fragment = self._fragment(parameter)
            if fragment is not None:
                kinds = KINDS if self._masters == "here" else [kind for kind in KINDS if kind != "master"]
                tensors = {kind: self._tensor(fragment, kind) for kind in kinds}
                copies = {kind: tensor.to("cpu", torch.float32, copy=True) for kind, tensor in tensors.items()}
                yield name, fragment.start, copies

    def summary(self) -> tuple[int, dict[str, int], Masters]:
        """The optimizer steps done, the elements of every parameter, and where the masters are saved."""
        return self._steps(), {name: _size(parameter) for name, parameter in self._trainable()}, self._masters

    def load(self, folder: Path) -> None:
        """Take the state, and the trainable weights, from what any number of ranks saved into a folder.

        All ranks must call it. Raises ValueError where the folder is not complete or of another model.
        """
        files = OptimizerFiles(folder)
        ours = {name: _size(parameter) for name, parameter in self._trainable()}
        if files.sizes != ours:
            other = sorted(set(files.sizes.items()) ^ set(ours.items()))
            raise ValueError(
                f"{folder} is of other parameters than are trained now: {len(other)} differ, e.g. {other[0][0]}. "
                "Resume with the settings of its run (model.path, model.lora, model.train_vision_tower)"
            )
        for name, parameter in self._trainable():
            whole = files.read(name, "master", 0, ours[name])
            # Under ZeRO-3 the gathered tensor of rank 0 is sent to the others.
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(whole.view(parameter.shape))
            fragment = self._fragment(parameter)
            if fragment is None:
                continue
            for kind in KINDS:
                self._tensor(fragment, kind).copy_(files.read(name, kind, fragment.start, fragment.length))
        for flat in self._flats():
            step = self._of(flat)["step"]
            self._of(flat)["step"] = torch.full_like(step, files.steps) if isinstance(step, Tensor) else files.steps

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def _fragment(self, parameter: nn.Parameter) -> _Fragment | None:
        """This rank's part; None where other ranks have all of it."""
        optimizer = self._engine.optimizer
        if hasattr(parameter, "ds_id"):  # ZeRO-3 gives each rank an equal part of every parameter, padded at the end
            group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = length * self._rank
            length = min(length, _size(parameter) - start)
            flat = optimizer.fp32_partitioned_groups_flat[group]
            return _Fragment(flat, offset, start, length) if length > 0 else None
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        place, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = self._flats()[mapping.param_group_index]
        return _Fragment(flat, here.start, place.start, place.numel)

    def _tensor(self, fragment: _Fragment, kind: str) -> Tensor:
        flat = fragment.flat if kind == "master" else self._of(fragment.flat)[kind]
        return flat.detach().narrow(0, fragment.offset, fragment.length)

    def _flats(self) -> list[Tensor]:
        """This rank's part of each group of parameters, float32, which Adam changes."""
        (name,) = (name for name in _FLATS if hasattr(self._engine.optimizer, name))
        return list(getattr(self._engine.optimizer, name))

    def _of(self, flat: Tensor) -> dict[str, Any]:
        """What Adam keeps of a flat tensor, made as its first step would where there was none yet."""
        optimizer = self._engine.optimizer.optimizer
        state: dict[str, Any] = optimizer.state[flat]
        if not state:
            on_torch = isinstance(optimizer, torch.optim.AdamW)
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device) if on_torch else 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
        return state

    def _steps(self) -> int:
        return int(self._of(self._flats()[0])["step"])


def _size(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter; under ZeRO-3 the tensor itself may be empty."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
