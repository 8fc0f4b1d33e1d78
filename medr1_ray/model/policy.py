"""The learner's policy: a Qwen2-VL or Qwen2.5-VL that scores completions under the engine's sampling distribution.

Needs only torch and transformers, no Ray, vLLM or DeepSpeed. Shapes as in `packing.py`; V is the vocabulary size, H the
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
"""Float32 logits that exist at once (256 MiB): 441 tokens with a vocabulary of 151,936."""

POSITION_BLOCK = 256


class Policy(nn.Module):
    """A vision-language model whose forward returns the log-probabilities of completion tokens.

    Args:
        model: `Qwen2VLForConditionalGeneration` or `Qwen2_5_VLForConditionalGeneration`.
        vocabulary: of the same checkpoint; banned tokens get the engine's logit bias.
        temperature: of sampling in the engine.
        frozen_features: cached features of a vision tower that is not trained; shared by models with the same tower.
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
        # The same Parameter as in the model, not a copy: tied weights stay tied, and the optimizer sees it once.
        self.head = CompletionHead(model.lm_head.weight, vocabulary, temperature)
        self._positions: dict[tuple[int, tuple[int, int, int]], Tensor] = {}

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return log-probabilities float32 [S] under the sampling distribution (banned tokens, temperature)."""
        hidden = self.model.model(
            **self._inputs(batch),
            position_ids=batch.position_ids,
            # In this form transformers takes the mask as final and builds none of its own.
            attention_mask={"full_attention": shared_prompt_mask(batch.segment)},
            use_cache=False,
        ).last_hidden_state
        logprobs: Tensor = self.head(hidden.flatten(0, 1)[batch.predictors], batch.targets)
        return logprobs

    def _inputs(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Return tokens and patches or, for a frozen tower, embeddings with the tower's features inserted."""
        images = batch.images
        if self._frozen_features is None:
            return {
                "input_ids": batch.input_ids,
                "pixel_values": images.pixel_values,
                "image_grid_thw": images.grid_thw,
            }
        features = self._frozen_features(
            # transformers splits `pooler_output` by image; here it always gets one image.
            images, lambda patches, grid: self.model.get_image_features(patches, grid).pooler_output[0]
        )
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        places = (batch.input_ids == self.vocabulary.image_pad)[..., None]
        return {"inputs_embeds": embeddings.masked_scatter(places, features.to(embeddings.dtype))}

    def prompt_positions(self, image_at: int, grid: tuple[int, int, int], length: int) -> Tensor:
        """Return M-RoPE positions int64 [3, length] of text with one image, computed by the model's own rule.

        Positions do not depend on later tokens, so one table per image index and grid serves all prompts.
        """
        key = (image_at, grid)
        table = self._positions.get(key)
        if table is None or table.shape[1] < length:
            merge = self.model.config.vision_config.spatial_merge_size
            visual = grid[0] * grid[1] * grid[2] // merge**2
            # Rounded up, so that a slightly longer row finds its table ready. 0 is text, 1 is image.
            kinds = torch.zeros(1, -(-length // POSITION_BLOCK) * POSITION_BLOCK, dtype=torch.int)
            kinds[0, image_at : image_at + visual] = 1
            positions, _ = self.model.model.get_rope_index(
                # The ids may be zeros: transformers 5.19 reads their shape and dtype alone.
                torch.zeros_like(kinds, dtype=torch.long), kinds, image_grid_thw=torch.tensor([grid])
            )
            table = self._positions[key] = positions[:, 0]
        return table[:, :length]


class CompletionHead(nn.Module):
    """The language-model head, applied only to positions that predict a completion token.

    It is a separate module and contains the whole loop over chunks, so that ZeRO-3 gathers the weight once per pass,
    whatever the number of chunks. Ranks with different numbers of gathers would deadlock.
    """

    logit_bias: Tensor

    def __init__(self, weight: nn.Parameter, vocabulary: Vocabulary, temperature: float) -> None:
        super().__init__()
        self.weight = weight
        self.temperature = temperature
        self.chunk_tokens = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        # The weight's rows, not the tokenizer's size: Qwen2-VL pads its vocabulary.
        bias = torch.zeros(weight.shape[0])
        bias[list(vocabulary.banned)] = BANNED_LOGIT_BIAS
        self.register_buffer("logit_bias", bias, persistent=False)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return log-probabilities float32 [S] of `targets` int64 [S] from hidden states [S, H].

        Several chunks are recomputed in the backward pass, so that only one chunk's logits exist at a time.
        """
        if targets.numel() <= self.chunk_tokens:
            return self._logprobs(hidden, targets)
        chunks = zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True)
        return torch.cat([checkpoint(self._logprobs, h, t, use_reentrant=False) for h, t in chunks])

    def _logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        # In the engine's order: float32, logit bias, temperature, normalisation.
        # In place, because each step would otherwise make another chunk of 256 MiB; autograd needs none of the values
        # overwritten.
        logits = (
            nn.functional.linear(hidden, self.weight).float().add_(self.logit_bias).div_(self.temperature)
        )
        # Not `log_softmax`, which would make a second tensor of all logits.
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
