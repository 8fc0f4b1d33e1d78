"""The start model beside the policy: where its weights are, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medr1_ray.config import Config
from medr1_ray.learner import reference as module
from medr1_ray.learner.messages import RankSettings
from medr1_ray.learner.reference import AdapterFreeReference, Reference

DEVICE = torch.device("meta")  # stands in for a GPU


class Batch:
    def to(self, device: torch.device) -> Batch:
        assert device == DEVICE
        return self


class Policy:
    """Notes where it was moved to, and gives as log-probability the number of moves so far."""

    made: Policy

    def __init__(self, model: Any, vocabulary: Any, temperature: float, features: Any) -> None:
        Policy.made = self
        self.model, self.temperature, self.features = model, temperature, features
        self.moves: list[str] = []

    def to(self, device: Any) -> Policy:
        self.moves.append(str(device))
        return self

    def __call__(self, batch: Batch) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return torch.tensor([float(len(self.moves))])


def settings(placement: str) -> RankSettings:
    return RankSettings.of(
        Config.model_validate(
            {
                "run": {"dir": Path("run")},
                "data": {"format": "phantoms", "root": Path("data")},
                "train": {"steps": 4},
                "rollout": {"temperature": 0.7},
                "reference": {"placement": placement},
            }
        )
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The start model that is loaded."""
    model = torch.nn.Linear(2, 2).train()
    monkeypatch.setattr(module, "Policy", Policy)
    monkeypatch.setattr(module, "load_model", lambda path, dtype, given: model)
    return model


def a_reference(placement: str, features: Any = None) -> Reference:
    return Reference(Path("model"), None, settings(placement), DEVICE, features)  # type: ignore[arg-type]


def test_on_the_device_it_moves_once_and_never_learns(model: torch.nn.Module) -> None:
    reference = a_reference("device", "the tower's cache")
    assert Policy.made.moves == ["meta"]
    assert (Policy.made.temperature, Policy.made.features) == (0.7, "the tower's cache")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert [each.item() for each in reference.logprobs([Batch(), Batch()])] == [1, 1]  # type: ignore[list-item]
    assert Policy.made.moves == ["meta"]


def test_from_main_memory_it_visits_the_device_for_each_call(model: torch.nn.Module) -> None:
    reference = a_reference("cpu")
    assert Policy.made.moves == []
    for visit in (1, 3):
        assert [each.item() for each in reference.logprobs([Batch(), Batch()])] == [visit] * 2  # type: ignore[list-item]
    assert Policy.made.moves == ["meta", "cpu"] * 2


def test_a_policy_with_adapters_is_its_own_reference_while_they_are_off() -> None:
    log: list[str] = []

    class Engine:
        def eval(self) -> None:
            log.append("eval")

        def train(self) -> None:
            log.append("train")

        def __call__(self, batch: Batch) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            log.append("score")
            return torch.zeros(1)

    class Off:
        def __enter__(self) -> None:
            log.append("off")

        def __exit__(self, *_: object) -> None:
            log.append("on")

    class Adapters:
        def off(self) -> Off:
            return Off()

    reference = AdapterFreeReference(Engine(), Adapters(), DEVICE)  # type: ignore[arg-type]
    assert len(reference.logprobs([Batch(), Batch()])) == 2  # type: ignore[list-item]
    assert log == ["eval", "off", "score", "score", "on", "train"]
