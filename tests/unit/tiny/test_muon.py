"""Steps of orthogonalised momentum."""

from __future__ import annotations

import pytest
import torch

from medr1_ray.tiny.muon import Muon


def step(gradient: torch.Tensor, lr: float = 0.1, weight_decay: float = 0.0) -> tuple[torch.Tensor, Muon]:
    """Return the change of a matrix of ones in one step, and the optimizer."""
    parameter = torch.nn.Parameter(torch.ones_like(gradient))
    optimizer = Muon([parameter], lr=lr, weight_decay=weight_decay)
    parameter.grad = gradient.clone()
    optimizer.step()
    return parameter.detach() - 1, optimizer


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_all_directions_of_a_gradient_move_alike_and_downhill(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    # Singular values from 1 to 100: plain descent would move one direction a hundred times as far as another.
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    gradient = left @ torch.diag(torch.logspace(0, 2, min(shape))) @ right.T
    change, _ = step(gradient)
    # Along each direction of the gradient, in units of lr * 0.2 * sqrt(longer side); five iterations of Newton and
    # Schulz bring singular values of 0.005 to 1 (of the norm) to about 0.7 to 1.2.
    moved = (left.T @ change @ right).diagonal() / (0.1 * 0.2 * max(shape) ** 0.5)
    assert ((moved < -0.6) & (moved > -1.3)).all(), moved
    scaled, _ = step(1000 * gradient)
    torch.testing.assert_close(scaled, change, rtol=1e-4, atol=1e-5, msg="the size of a gradient does not matter")


def test_weights_decay_by_their_share_where_there_is_no_gradient() -> None:
    change, _ = step(torch.zeros(4, 4), lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(change, torch.full((4, 4), -0.05))  # 1 * (1 - 0.1 * 0.5)


def test_momentum_goes_on_after_the_gradient_has_gone() -> None:
    gradient = torch.eye(4)
    _, optimizer = step(gradient)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.zeros(4, 4)
    before = parameter.detach().clone()
    optimizer.step()
    moved = (parameter.detach() - before).diagonal() / (0.1 * 0.2 * 2)
    assert (moved < -0.6).all()
    # A moving average with 0.95: 0.05 of the gradient after one step, 0.95 of that after a step without.
    torch.testing.assert_close(optimizer.state[parameter]["momentum"], 0.05 * 0.95 * gradient)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(parameter.detach(), torch.ones(2, 2))
