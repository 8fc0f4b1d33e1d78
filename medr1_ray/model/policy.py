"""The policy in the learner: a Qwen2-VL or Qwen2.5-VL that scores completions as the engine sampled them.

Needs torch and transformers only: no Ray, vLLM or DeepSpeed. Shapes as in `packing.py`, and V the vocabulary, H the
hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medr1_ray.model.attention import shared_prompt_mask
from medr1_ray.model.image_patches import FrozenFeatures
from medr1_ray.model.packing import PackedBatch
from medr1_ray.model.vocabulary import BANNED_LOGIT_BIAS, Vocabulary

LOGITS_PER_CHUNK = 2**26
"""Float32 logits that exist at once (256 MiB): with 151,936 words, 441 tokens."""

POSITION_BLOCK = 256

class Policy(nn.Module):
    """A vision-language model whose forward returns the log-probabilities of completion tokens.

    Args:
        model: `Qwen2VLForConditionalGeneration` or `Qwen2_5_VLForConditionalGeneration`.
        vocabulary: of the same checkpoint; its banned tokens get the engine's logit bias.
        temperature: the one that sampled.
        frozen_features: for a vision tower that is not trained, what it made of images before; shared by models with
            the same tower.
    """

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        temperature: float,
        frozen_features: FrozenFeatures | None = None,
    ) -> None:
        super().__init__()
        self._frozen_features = frozen_features
        self.model: Any = model
        self.vocabulary = vocabulary
        self.head = CompletionHead(model.lm_head.weight, vocabulary, temperature)
        self._positions: dict[tuple[int, tuple[int, int, int]], Tensor] = {}

    def forward(self, batch: PackedBatch) -> Tensor:
        """Float32 [S]: log-probabilities under the distribution that was sampled (banned tokens, temperature)."""
        hidden = self.model.model(
            **self._inputs(batch),
            position_ids=batch.position_ids,
            # The form that transformers takes as final, for it builds no mask of its own then.
            attention_mask={"full_attention": shared_prompt_mask(batch.segment)},
            use_cache=False,
        ).last_hidden_state
        logprobs: Tensor = self.head(hidden.flatten(0, 1)[batch.predictors], batch.targets)
        return logprobs

    def _inputs(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Tokens and patches; or, where the tower is frozen, embeddings with its features in their places."""
        images = batch.images
        if self._frozen_features is None:
            return {
                "input_ids": batch.input_ids,
                "pixel_values": images.pixel_values,
                "image_grid_thw": images.grid_thw,
            }
        features = self._frozen_features(
            images, lambda patches, grid: self.model.get_image_features(patches, grid).pooler_output[0]
        )
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        places = (batch.input_ids == self.vocabulary.image_pad)[..., None]
        return {"inputs_embeds": embeddings.masked_scatter(places, features.to(embeddings.dtype))}

    def prompt_positions(self, image_at: int, grid: tuple[int, int, int], length: int) -> Tensor:
        """M-RoPE positions int64 [3, length] of text with one image, from the model's own rule.

        Positions do not depend on what follows, so one table per place and shape of the image serves all prompts.
        """
        key = (image_at, grid)
        table = self._positions.get(key)
        if table is None or table.shape[1] < length:
            merge = self.model.config.vision_config.spatial_merge_size
            visual = grid[0] * grid[1] * grid[2] // merge**2
            kinds = torch.zeros(1, -(-length // POSITION_BLOCK) * POSITION_BLOCK, dtype=torch.int)
            kinds[0, image_at : image_at + visual] = 1
            positions, _ = self.model.model.get_rope_index(
                torch.zeros_like(kinds, dtype=torch.long), kinds, image_grid_thw=torch.tensor([grid])
            )
            table = self._positions[key] = positions[:, 0]
        return table[:, :length]


class CompletionHead(nn.Module):
    """The language-model head, applied to the positions that predict a completion token and to no other.

    A module of its own that owns the whole loop over chunks, so that ZeRO-3 gathers the weight once however many
    chunks a rank has (ranks with different numbers of gathers would wait for each other for ever).
    """

    logit_bias: Tensor

    def __init__(self, weight: nn.Parameter, vocabulary: Vocabulary, temperature: float) -> None:
        super().__init__()
        self.weight = weight
        self.temperature = temperature
        self.chunk_tokens = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        bias = torch.zeros(weight.shape[0])
        bias[list(vocabulary.banned)] = BANNED_LOGIT_BIAS
        self.register_buffer("logit_bias", bias, persistent=False)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities float32 [S] of `targets` int64 [S] from hidden states [S, H].

        Several chunks are recomputed in the backward pass, so that the logits of one exist at a time.
        """
        if targets.numel() <= self.chunk_tokens:
            return self._logprobs(hidden, targets)
        chunks = zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        return torch.cat([checkpoint(self._logprobs, h, t, use_reentrant=False) for h, t in chunks])

    def _logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        # The engine's own order: float32, bias, temperature, normalisation.
        logits = (
            nn.functional.linear(hidden, self.weight).float().add_(self.logit_bias).div_(self.temperature)
        )
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
