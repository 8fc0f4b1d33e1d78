"""The dataclasses that travel between processes: frozen, picklable, flat arrays only.

Legend of the shapes: G completions in a group, S tokens of all completions of a group laid end to end
(`lengths` cuts them), T prompt tokens, H x W pixels, R reward functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["think", "no_think", "think_after"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One multiple-choice question about one image, as a data reader yields it.

    `options` has 2 to 26 texts; `answer` indexes it. `modality` and `question_type` are the canonical names
    of `medr1_ray.data.questions`. `image_path` is absolute.
    """

    id: str
    image_path: str
    stem: str
    options: tuple[str, ...]
    answer: int
    modality: str
    question_type: str
    dataset: str

    @property
    def gold_letter(self) -> str:
        return LETTERS[self.answer]

    @property
    def text(self) -> str:
        """The question as Med-R1 words it: `stem A)x, B)y, C)z`."""
        options = ", ".join(f"{LETTERS[i]}){option}" for i, option in enumerate(self.options))
        return f"{self.stem} {options}"


@dataclass(frozen=True)
class StoredImage:
    """An image in Ray's object store, where whoever needs its pixels reads them.

    `reference` is Ray's, to uint8 [H, W, 3] of this `shape`; `digest` is `pixels_digest` of them.
    """

    reference: Any
    shape: tuple[int, int, int]
    digest: str

    def checked(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels. Raises ValueError where Ray has made them again, and they are no longer those of this image."""
        if pixels.shape != self.shape:
            raise ValueError(
                f"an image of shape {self.shape} was lost with its node, and made again it has shape {pixels.shape}: "
                "its file cannot be read any more, or is another one; restore it and go on with --resume"
            )
        return pixels


Image = NDArray[np.uint8] | StoredImage
"""An image at hand, uint8 [H, W, 3], or in the object store."""


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """The pixels of an image, read-only where others share them; waits for the object store."""
    return all_pixels([image])[0]


def all_pixels(images: Sequence[Image]) -> list[NDArray[np.uint8]]:
    """The pixels of each image, as `pixels_of`; from other nodes they come side by side."""
    references = [image.reference for image in images if isinstance(image, StoredImage)]
    if not references:
        return [image for image in images if not isinstance(image, StoredImage)]
    import ray

    found = iter(ray.get(references))
    return [image.checked(next(found)) if isinstance(image, StoredImage) else image for image in images]


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """A digest that names an image by its pixels, uint8 [H, W, 3]; not against forgery."""
    import xxhash

    # The shape is part of it: the same bytes in another shape are another image. An image is hashed several times a
    # step, and this takes a twentieth of blake2b's time.
    state = xxhash.xxh3_128(repr(pixels.shape).encode())
    state.update(np.ascontiguousarray(pixels).data)
    return state.hexdigest()


@dataclass(frozen=True)
class Prompt:
    """A question ready for the engine and the learner; its id is unique in a run and survives re-issue.

    `token_ids` is int32 [T] with exactly one image-pad token where the image goes (the engine and the learner
    each expand it to the image's visual tokens).
    """

    id: str
    question: Question
    token_ids: NDArray[np.int32]
    image: Image


@dataclass(frozen=True)
class Sampling:
    """How the engine samples one group. `temperature` 0 is greedy; with a `seed` the completions of a prompt depend on
    nothing but the weights, up to rounding."""

    group_size: int
    max_tokens: int
    temperature: float
    seed: int | None = None
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class GroupRequest:
    """A group that an actor is to sample; `id` is unique among those that it has."""

    id: str
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True)
class Span:
    """One phase of one actor: wall-clock start and end in seconds since the epoch."""

    actor: str
    phase: str
    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True)
class Completions:
    """The G completions of one prompt.

    `token_ids` int32 [S], `rollout_logprobs` float32 [S] (of the distribution that was sampled: temperature
    and banned tokens applied), `versions` int32 [S] (the policy version whose weights sampled each token),
    `lengths` int32 [G], `truncated` bool [G] (stopped by the length limit), `texts` G strings without special
    tokens, `visual_tokens` the number of visual tokens that the engine made of the image.
    """

    prompt_id: str
    actor: str
    token_ids: NDArray[np.int32]
    rollout_logprobs: NDArray[np.float32]
    versions: NDArray[np.int32]
    lengths: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    texts: tuple[str, ...]
    visual_tokens: int
    span: Span


@dataclass(frozen=True)
class Continuations:
    """C texts whose likelihood after one prompt is asked for: `token_ids` int32 [S] of all of them laid end to end,
    cut by `lengths` int32 [C]."""

    token_ids: NDArray[np.int32]
    lengths: NDArray[np.int32]


@dataclass(frozen=True)
class Likelihoods:
    """`logprobs` float32 [C]: the log-probability in nats of each continuation as a whole, `lengths` int32 [C] its
    tokens; of the model's plain distribution (temperature 1, no token banned)."""

    prompt_id: str
    logprobs: NDArray[np.float32]
    lengths: NDArray[np.int32]


@dataclass(frozen=True)
class Rewards:
    """Rewards of one group: `values` float32 [G, R] by function in the order of `names`, `total` float32 [G]
    (the weighted sum), `correct` bool [G] and `well_formed` bool [G] (judged by the default parser, whatever the
    reward functions are), `answers` the parsed letters (None where there is none)."""

    prompt_id: str
    names: tuple[str, ...]
    values: NDArray[np.float32]
    total: NDArray[np.float32]
    correct: NDArray[np.bool_]
    well_formed: NDArray[np.bool_]
    answers: tuple[str | None, ...]
    span: Span

    @property
    def all_equal(self) -> bool:
        """Whether no completion has an advantage. Of extremes: the float mean of equal rewards need not equal them."""
        return bool(self.total.max() == self.total.min())


@dataclass(frozen=True)
class Group:
    """One prompt with its scored completions: what the learner consumes.

    `advantages` float32 [G] are the group-relative advantages of `rewards.total` (`rewards/advantages.py`).
    `reference_logprobs` float32 [S] is filled in by the learner before an update with a KL term.
    """

    prompt: Prompt
    completions: Completions
    rewards: Rewards
    advantages: NDArray[np.float32]
    reference_logprobs: NDArray[np.float32] | None = None


CompletedPrompt = tuple[Prompt, Completions]
