"""Engines go where there are GPUs, unless settings say otherwise."""

from __future__ import annotations

import pytest
import torch

from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.evaluation.devices import describe_engines, place_engines, visible_gpus


def config_of(*overrides: str) -> Config:
    given = ["run.dir=a", "data.format=phantoms", "data.root=x", "train.steps=4"]
    return load_config([], [*given, *overrides])


@pytest.mark.parametrize(
    ("overrides", "gpus", "placed"),
    [
        # Engines, GPUs of each, precision.
        ([], 0, (1, 0, "float32")),
        ([], 1, (1, 1, "bfloat16")),
        ([], 8, (8, 1, "bfloat16")),
        (["rollout.tensor_parallel_size=2"], 8, (4, 2, "bfloat16")),
        (["rollout.tensor_parallel_size=2"], 1, (1, 2, "bfloat16")),
        # What was given stays.
        (["rollout.actors=2"], 8, (2, 1, "bfloat16")),
        (["model.dtype=float32"], 2, (2, 1, "float32")),
        (["rollout.gpus_per_actor=0"], 8, (1, 0, "float32")),
        (["rollout.gpus_per_actor=0", "model.dtype=bfloat16"], 8, (1, 0, "bfloat16")),
        (["rollout.gpus_per_actor=0.5", "rollout.actors=2"], 8, (2, 0.5, "bfloat16")),
        # GPUs of a cluster that this machine does not have.
        (["rollout.gpus_per_actor=1", "rollout.actors=3"], 0, (3, 1, "bfloat16")),
    ],
)
def test_what_settings_leave_open_is_chosen(overrides: list[str], gpus: int, placed: tuple[int, float, str]) -> None:
    found = place_engines(config_of(*overrides), lambda: gpus)
    assert (found.rollout.actors, found.rollout.gpus_per_actor, found.model.dtype) == placed


@pytest.mark.parametrize(
    ("overrides", "gpus", "line"),
    [
        ([], 0, "starting 1 engine on the CPU, in float32 (rollout.gpus_per_actor=1 asks for a GPU)"),
        ([], 1, "starting 1 engine on 1 GPU, in bfloat16"),
        (["rollout.tensor_parallel_size=2"], 4, "starting 2 engines on 2 GPUs each, in bfloat16"),
    ],
)
def test_the_choice_is_said_in_a_line(overrides: list[str], gpus: int, line: str) -> None:
    assert describe_engines(place_engines(config_of(*overrides), lambda: gpus)) == line


def test_counting_gpus_initialises_no_cuda() -> None:
    initialised = torch.cuda.is_initialized()
    assert visible_gpus() == torch.cuda.device_count()
    assert torch.cuda.is_initialized() == initialised
