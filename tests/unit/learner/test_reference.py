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


class Module(torch.nn.Module):
    """Its log-probability is where its weights are; and they are tied, as a head to the embeddings."""

    def __init__(self, model: torch.nn.Linear, *_: Any) -> None:
        super().__init__()
        self.model, self.head = model, torch.nn.Linear(2, 2, bias=False)
        self.head.weight = model.weight
        self.register_buffer("angles", torch.ones(3))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.head.weight, self.model.weight, self.angles


def test_from_main_memory_a_copy_of_the_weights_visits_the_device_once_a_step(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Policy", Module)
    reference = a_reference("cpu")
    own = model.weight.data_ptr()
    first, *_ = reference.logprobs([Batch(), Batch()])  # type: ignore[list-item]
    (second,) = reference.logprobs([Batch()])  # type: ignore[list-item]
    assert {each.device for each in first} == {DEVICE}, "buffers too"
    assert first[0] is first[1] is second[0], "one copy in a step, and of tied weights one"
    assert (model.weight.device.type, model.weight.data_ptr()) == ("cpu", own), "nothing is copied back"
    reference.release()
    (third,) = reference.logprobs([Batch()])  # type: ignore[list-item]
    assert third[0] is not first[0]


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
