"""The dataclasses that travel between processes: frozen, picklable, flat arrays only.

Legend of the shapes: G completions in a group, S tokens of all completions of a group laid end to end
(`lengths` cuts them), T prompt tokens, H x W pixels, R reward functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["think", "no_think", "think_after"]

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Question:
    """One multiple-choice question about one image, as a data reader yields it.

    `options` has 2 to 8 texts; `answer` indexes it. `modality` and `question_type` are the canonical names
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
class Prompt:
    """A question ready for the engine and the learner; its id is unique in a run and survives re-issue.

    `token_ids` is int32 [T] with exactly one image-pad token where the image goes (the engine and the learner
    each expand it to the image's visual tokens); `image` is uint8 [H, W, 3].
    """

    id: str
    question: Question
    token_ids: NDArray[np.int32]
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Sampling:
    """How the engine samples one group. `temperature` 0 is greedy; `seed` makes a single actor repeatable."""

    group_size: int
    max_tokens: int
    temperature: float
    seed: int | None = None
    top_p: float = 1.0
    top_k: int = 0


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

    `reference_logprobs` float32 [S] are the learner's own addition before an update that takes a KL.
    """

    prompt: Prompt
    completions: Completions
    rewards: Rewards
    reference_logprobs: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Where one parameter lies in a flat bucket: `offset` and the size that follows from shape and dtype, in
    bytes. `name` is the Hugging Face checkpoint's; `dtype` is torch's name without the `torch.` prefix."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class WeightBucket:
    """Several parameters that travel together, laid end to end in `size_bytes` bytes.

    `data` says where the bytes are, in the transport's own terms: an ObjectRef of a uint8 array, CUDA IPC handles by
    GPU, or nothing where they come by broadcast. `digest` is of the bytes; empty where they are proven in the stream
    itself. `frozen` parameters never change in a run. A bucket that is not `sent` is listed all the same: the engine
    must hold it, by its digest, from an earlier update.
    """

    tensors: tuple[TensorSpec, ...]
    size_bytes: int
    digest: str
    data: Any
    frozen: bool = False
    sent: bool = True


@dataclass(frozen=True)
class WeightUpdate:
    """All parameters of one policy version. `digest` is over the version and the buckets' digests and tensors, in
    order. A `lasting` update can be loaded at any time; another only while the learner is sending it."""

    version: int
    buckets: tuple[WeightBucket, ...]
    digest: str
    lasting: bool = True


@dataclass(frozen=True)
class WeightMember:
    """An engine that takes part in a weight group: `ranks` worker processes (its tensor-parallel size). A restarted
    actor has another `incarnation`."""

    actor: str
    incarnation: str
    ranks: int


@dataclass(frozen=True)
class WeightGroup:
    """One process's place in a group that broadcasts weights: the learner's rank 0 is rank 0, `rank_offset` is the
    engine's first worker's. All meet at `address` (host:port)."""

    address: str
    world_size: int
    rank_offset: int


@dataclass(frozen=True)
class MicroBatch:
    """Indices of the groups that go through the learner's model together. `padding` marks one that only keeps a rank
    in step with the others: its tokens get weight 0 and count in no statistic."""

    groups: tuple[int, ...]
    padding: bool = False


@dataclass(frozen=True)
class BatchSize:
    """The whole batch's normalisers: its completions, its tokens, and the most tokens that a completion may have."""

    completions: int
    tokens: int
    max_tokens: int


@dataclass(frozen=True)
class UpdateRequest:
    """What one learner rank gets: the groups of its own micro-batches, which index `groups`.

    `version` is the policy version that the learner holds, i.e. the optimizer steps it has done.
    """

    version: int
    groups: tuple[Group, ...]
    micro_batches: tuple[MicroBatch, ...]
    batch: BatchSize


@dataclass(frozen=True)
class ImitationRequest:
    """What one learner rank gets of a supervised batch: as `UpdateRequest`, with completions that nobody sampled."""

    version: int
    demonstrations: tuple[tuple[Prompt, Completions], ...]
    micro_batches: tuple[MicroBatch, ...]
    batch: BatchSize


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step: the loss before it, the gradient's norm before clipping, and the rate that it took."""

    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class TokenSums:
    """Sums and maxima over tokens that add up over micro-batches and ranks; `grpo.statistics` makes means of them."""

    tokens: float = 0.0
    ratio_max: float = -math.inf
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    importance: float = 0.0
    importance_capped: float = 0.0
    kl: float = 0.0
    gap_tokens: float = 0.0
    gap: float = 0.0
    gap_max: float = -math.inf
    drift_tokens: float = 0.0
    drift: float = 0.0

    def __add__(self, other: TokenSums) -> TokenSums:
        return TokenSums(
            **{
                name: max(value, vars(other)[name]) if name.endswith("_max") else value + vars(other)[name]
                for name, value in vars(self).items()
            }
        )


@dataclass(frozen=True)
class RankReport:
    """What one learner rank did in an update; `steps` has this rank's share of the loss."""

    steps: tuple[OptimizerStep, ...]
    sums: TokenSums
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class PolicyStatistics:
    """Means over the tokens that went through the learner; None where there was no such token.

    `kl` is the mean of the chosen estimator; `logprob_gap_*` the absolute difference between learner and engine over
    the `logprob_gap_tokens` that were sampled with the learner's own weights; `version_drift` its mean over tokens of
    older weights.
    """

    ratio_max: float | None
    clip_low_fraction: float | None
    clip_high_fraction: float | None
    importance_mean: float | None
    importance_capped_fraction: float | None
    kl: float | None
    logprob_gap_tokens: int
    logprob_gap_mean: float | None
    logprob_gap_max: float | None
    version_drift: float | None


@dataclass(frozen=True)
class UpdateReport:
    """What an update did. `version` is the learner's afterwards; `steps` has one entry per optimizer step.

    `groups` and `tokens` (of completions) are the whole batch's; `groups_zero_variance` of them had equal rewards and
    `groups_skipped` of those did not go through the model because nothing could be learned from them.
    `padded_tokens` went through it, prompts and padding included. `model_flops` is what that needs (`flops.py`), and
    `peak_flops` what all ranks together could do in a second, None where the devices are not known.
    """

    version: int
    steps: tuple[OptimizerStep, ...]
    statistics: PolicyStatistics
    groups: int
    groups_zero_variance: int
    groups_skipped: int
    tokens: int
    padded_tokens: int
    model_flops: float
    peak_flops: float | None
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class ImitationReport:
    """What a supervised step did. `version` is the learner's afterwards; the step's loss is the mean negative
    log-likelihood of the batch's `tokens`, in nats; the others as in `UpdateReport`."""

    version: int
    step: OptimizerStep
    tokens: int
    padded_tokens: int
    model_flops: float
    peak_flops: float | None
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class GroupScore:
    """The learner's log-probabilities float32 [S] of one group's completions, and the number of visual tokens that it
    made of the image."""

    policy_logprobs: NDArray[np.float32]
    visual_tokens: int
