"""The vision tower alone learns the words of descriptions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from medr1_ray.tiny import curriculum, shapes
from medr1_ray.tiny.architecture import build_model
from medr1_ray.tiny.eyes import EyePlan, fact_groups, open_eyes, picture_with_words
from medr1_ray.tiny.network import FastForward


def test_every_word_of_a_picture_is_one_to_tell_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((84, 84, 3), np.uint8)
    monkeypatch.setattr(curriculum, "phantom_image", lambda *_: blank)
    monkeypatch.setattr(shapes, "draw_scene", lambda *_: blank)
    groups, rng = fact_groups(), np.random.default_rng(0)
    seen: dict[str, set[str]] = {group: set() for group in groups}
    for _ in range(400):
        _, words = picture_with_words(rng)
        for group, word in words.items():
            assert word in groups[group]
            seen[group].add(word)
    assert seen == {group: set(words) for group, words in groups.items()}


def test_words_are_single_tokens_so_that_they_can_be_told_apart(tokenizer) -> None:
    for group, words in fact_groups().items():
        first = [tokenizer(" " + word, add_special_tokens=False)["input_ids"][0] for word in words]
        assert len(set(first)) == len(words), group


def test_only_the_tower_learns_and_it_does_learn(tokenizer) -> None:
    model = build_model(tokenizer, seed=0)
    before = copy.deepcopy(model.state_dict())
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medr1_ray.tiny.eyes.LOG_EVERY", 8)
        open_eyes(FastForward(model), tokenizer, EyePlan(steps=16, pictures=8, warm_up=3), 0, lines.append)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.partition("visual")[0] for name in changed} == {"model."}
    assert len(changed) > 30
    # Eight modalities are at 0.125 by chance; colours tell most of them apart within a few steps.
    right = [float(line.partition("modality ")[2].partition(",")[0]) for line in lines]
    assert len(right) == 2
    assert right[1] > max(right[0], 0.3)
