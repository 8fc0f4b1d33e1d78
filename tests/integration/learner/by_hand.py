"""What the tests of updates against plain torch share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medr1_ray.base.manifest import StoredFile
from medr1_ray.config import Config, tiny_model_path
from medr1_ray.learner import grpo
from medr1_ray.learner.handle import Learner
from medr1_ray.learner.messages import BatchSize, UpdateReport
from medr1_ray.model import packing
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.types import Group


def save(learner: Learner, folder: Path) -> list[StoredFile]:
    """Save into a folder, and wait until that is written."""
    learner.begin_save(folder)
    return learner.finish_save()


def train_twice(
    learners: tuple[Learner, ...], groups: list[Group], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[list[UpdateReport], Path]]:
    """Each learner after two updates: its reports and the folder it saved to."""
    found = []
    for learner in learners:
        folder = tmp_path_factory.mktemp("checkpoint")
        reports = [learner.update(groups, version) for version in range(2)]
        save(learner, folder)
        found.append((reports, folder))
    return found


def plain_batch(groups: list[Group], policy: Policy, reference: Policy, settings: Config) -> tuple[Any, Any]:
    """All groups as plain rows, one per completion, and what the loss takes beside their log-probabilities."""
    vocabulary = load_vocabulary(tiny_model_path())
    pairs = [(group.prompt, group.completions) for group in groups]
    images = ImagePatcher(tiny_model_path())([group.prompt.image for group in groups])
    batch = packing.pack_plain(pairs, images, vocabulary.image_pad, vocabulary.pad, policy.prompt_positions)
    lengths = torch.from_numpy(np.concatenate([group.completions.lengths for group in groups])).long()
    rewards = torch.from_numpy(np.stack([group.rewards.total for group in groups]))
    # Written out here, so that the expectation does not share the code of what it checks; group 3 has equal rewards.
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    size = BatchSize(len(lengths), int(lengths.sum()), settings.rollout.max_tokens)
    with torch.no_grad():
        reference_logprobs = reference(batch)
    rollout_logprobs = np.concatenate([group.completions.rollout_logprobs for group in groups])
    tokens = grpo.TokenBatch(
        lengths=lengths,
        advantages=advantages.flatten().repeat_interleave(lengths),
        weights=grpo.token_weights(lengths, "sequence", size),
        rollout_logprobs=torch.from_numpy(rollout_logprobs),
        versions=torch.zeros(int(lengths.sum())),
        reference_logprobs=reference_logprobs,
    )
    return batch, tokens
