"""Engines that always give the same answers, for passes and whole evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medr1_ray.types import Completions, Continuations, Group, Likelihoods, Prompt, Rewards, Sampling, Span

SPAN = Span("rollout-0", "rollout", 0.0, 1.0)


class Engines:
    """Fake engines: the same completions for every prompt; the first of the continuations is the most likely."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.prompts: list[Prompt] = []
        self.sampling: Sampling | None = None

    def run(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        self.prompts += prompts
        self.sampling = sampling
        return [
            Group(prompt, self._completions(prompt), self._rewards(prompt), np.zeros(1, np.float32))
            for prompt in prompts
        ]

    def likelihoods(
        self, prompts: Sequence[Prompt], continuations: Sequence[Continuations]
    ) -> list[Likelihoods]:
        self.prompts += prompts
        return [
            Likelihoods(prompt.id, -1.0 - np.arange(len(each.lengths), dtype=np.float32), each.lengths)
            for prompt, each in zip(prompts, continuations, strict=True)
        ]

    def _completions(self, prompt: Prompt) -> Completions:
        zero = np.zeros(len(self.texts), np.int32)
        cut = np.array([text.endswith("...") for text in self.texts])
        return Completions(prompt.id, "a", zero, zero.astype(np.float32), zero, zero + 1, cut, self.texts, 1, SPAN)

    def _rewards(self, prompt: Prompt) -> Rewards:
        correct = np.array([prompt.question.gold_letter in text for text in self.texts])
        values = correct[:, None].astype(np.float32)
        return Rewards(prompt.id, ("accuracy",), values, values[:, 0], correct, correct, (None,) * len(correct), SPAN)
