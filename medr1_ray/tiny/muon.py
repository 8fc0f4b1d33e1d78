"""Muon in float32: torch's own uses bfloat16, which is slow on a CPU without bfloat16 instructions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315  # Jordan et al., "Muon", 2024: coefficients of the quintic iteration
_ITERATIONS = 5
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for matrices, scaled to AdamW's update size (Liu et al., arXiv 2502.16982)."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    gradient = parameter.grad
                    assert gradient is not None
                    state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
                    updates.append(gradient.lerp(state["momentum"], _MOMENTUM))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, _orthogonal(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-scale)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return nearly orthogonal matrices [N, rows, columns] with the singular vectors of the given ones."""
    # Transposed if tall, so that the Gram matrix has the size of the shorter side.
    tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x
