"""A rank with a small real model, trained by torch alone in the place of DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.learner.actor import LearnerActor
from medr1_ray.learner.messages import RankSettings
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.policy import Policy
from tests.unit.model.small_models import VOCABULARY, qwen2_vl


class TorchEngine:
    """`gradients` has those of every step, `rows` the shapes [B, L] of all batches that went through a model."""

    def __init__(self, policy: Policy) -> None:
        self.module = policy
        self.optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
        self.gradients: list[dict[str, Tensor]] = []
        self.rows: list[tuple[int, ...]] = []

    def __call__(self, batch: Any) -> Tensor:
        self.rows.append(tuple(batch.input_ids.shape))
        logprobs: Tensor = self.module(batch)
        return logprobs

    def set_gradient_accumulation_boundary(self, is_last: bool) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        parameters = self.module.model.named_parameters()
        self.gradients.append({name: parameter.grad.clone() for name, parameter in parameters})
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> float:
        return torch.stack([gradient.norm() for gradient in self.gradients[-1].values()]).norm().item()

    def eval(self) -> None:
        self.module.eval()

    def train(self) -> None:
        self.module.train()


def real_rank(**sections: Any) -> tuple[Any, TorchEngine]:
    """The only rank of a learner, with a reference of other weights. The weights are the same at every call."""
    settings = {"run": {"dir": Path("run")}, "data": {"format": "phantoms", "root": Path("data")}, **sections}
    config = Config.model_validate(settings)
    policies = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        policies.append(Policy(qwen2_vl().float().train(), VOCABULARY, config.rollout.temperature))
    policy, reference = policies
    actor: Any = LearnerActor(RankSettings.of(config), 0, "learner-0")
    engine = TorchEngine(policy)
    actor._device, actor._policy, actor._engine = torch.device("cpu"), policy, engine
    actor._patch = ImagePatcher(tiny_model_path())

    @torch.no_grad()
    def logprobs(batches: list[Any]) -> list[Tensor]:
        engine.rows += [tuple(batch.input_ids.shape) for batch in batches]
        return [reference(batch) for batch in batches]

    scores = SimpleNamespace(logprobs=logprobs, release=lambda: None)
    actor._reference = scores if config.takes_kl else None
    return actor, engine
