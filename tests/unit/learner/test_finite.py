"""Weights that are not finite are found, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medr1_ray.learner.finite import require_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_element_of_a_trainable_parameter_is_enough(value: float, dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    require_finite(module)
    with torch.no_grad():
        module[1].weight[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"no longer finite \(1\.weight\).*smaller learner\.learning_rate"):
        require_finite(module)
    module[1].weight.requires_grad_(False)
    require_finite(module)  # not trained, and so as it was loaded


def test_the_part_that_a_rank_has_of_a_cut_parameter_counts() -> None:
    """As ZeRO-3 leaves it: the parameter is empty."""
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = torch.empty(0)
    module.weight.ds_tensor = torch.tensor([1.0, float("nan")])  # type: ignore[assignment]
    with pytest.raises(FloatingPointError, match="weight"):
        require_finite(module)
