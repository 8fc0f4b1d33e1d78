"""Frozen parameters reach a real engine once, and the engine goes on computing with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from medr1_ray.rollout.actor import WeightLoadError
from medr1_ray.types import Prompt, Sampling
from medr1_ray.weights.messages import WeightUpdate
from medr1_ray.weights.transports.object_store import ObjectStoreSender
from tests.generating import generate
from tests.integration.weights import small_engine as small

Weights = dict[str, torch.Tensor]

_versions = itertools.count(10_000)


def published(sender: ObjectStoreSender, weights: Weights, frozen: str) -> WeightUpdate:
    update = sender.publish(small.Source(weights, frozen), next(_versions), to_newcomers=False)
    assert update is not None
    return update


def without_frozen_bytes(update: WeightUpdate) -> WeightUpdate:
    """The same update, of whose frozen buckets nobody can fetch the bytes."""
    return replace(
        update, buckets=tuple(replace(b, data=None) if b.frozen else b for b in update.buckets)
    )


def load(actor: Any, update: WeightUpdate) -> None:
    assert ray.get(actor.load_weights.remote(update)).digest == update.digest


def test_frozen_parameters_are_fetched_once_and_again_after_a_failure(
    rollout_actor: Any,
    scrambled: Callable[..., Weights],
    make_prompt: Callable[[str], Prompt],
    transformers_logprobs: Callable[..., np.ndarray],
) -> None:
    first, second = scrambled(31), scrambled(32)
    sender = ObjectStoreSender(ray.put, 0, 2**20)
    load(rollout_actor, published(sender, first, "visual"))
    update = published(sender, second, "visual")  # whose frozen parameters are still the first's
    load(rollout_actor, without_frozen_bytes(update))
    prompt = make_prompt("frozen")
    found = generate(rollout_actor, "frozen", prompt, Sampling(1, 12, 1.0, seed=1))
    expected = {name: (first if "visual" in name else second)[name] for name in first}
    gap = np.abs(found.rollout_logprobs - transformers_logprobs(expected, prompt, found.token_ids)).max()
    assert gap <= 1e-4
    assert np.abs(found.rollout_logprobs - transformers_logprobs(second, prompt, found.token_ids)).max() >= 1e-2

    wrong = published(sender, second, "visual")
    with pytest.raises(WeightLoadError, match="do not match"):
        ray.get(rollout_actor.load_weights.remote(replace(wrong, digest="0" * 32)))
    again = published(sender, second, "visual")
    with pytest.raises(WeightLoadError):
        ray.get(rollout_actor.load_weights.remote(without_frozen_bytes(again)))
    load(rollout_actor, again)


def test_a_layer_of_the_engine_is_frozen_as_a_whole_or_not_at_all(
    rollout_actor: Any, scrambled: Callable[..., Weights]
) -> None:
    sender = ObjectStoreSender(ray.put, 0, 2**20)
    load(rollout_actor, published(sender, scrambled(33), "q_proj"))
    with pytest.raises(WeightLoadError, match="fuses frozen and trained parameters"):
        ray.get(rollout_actor.load_weights.remote(published(sender, scrambled(34), "q_proj")))
    load(rollout_actor, published(ObjectStoreSender(ray.put, 0, 2**20), scrambled(35), "visual"))
