"""Weights that are not finite are neither served nor saved."""

from __future__ import annotations

import torch
from torch import nn


def require_finite(module: nn.Module) -> None:
    """Check this rank's part of the trainable parameters.

    Raises:
        FloatingPointError: one of them has an infinity or a NaN.
    """
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    # Under ZeRO-3 a parameter itself is empty, and `ds_tensor` is the part that this rank has of it.
    parts = [(name, getattr(parameter, "ds_tensor", parameter).detach()) for name, parameter in trainable]
    finite = [torch.isfinite(part).all() for _, part in parts]
    # One answer for all, because each would wait for the GPU.
    if not finite or torch.stack(finite).all():
        return
    name = next(name for (name, _), each in zip(parts, finite, strict=True) if not each)
    raise FloatingPointError(
        f"the weights are no longer finite ({name}), so they are neither given to the engines nor saved. Go on from "
        "the last checkpoint (--resume) with a smaller learner.learning_rate or learner.max_grad_norm"
    )
