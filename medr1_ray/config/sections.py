"""Settings of the run, the model, the training loop, rollouts, the learner, the parity gate and alarms.

Settings under `rollout.engine` and `learner.deepspeed` are passed to vLLM and DeepSpeed under their own names; keys
that this package sets itself are refused there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from medr1_ray.config.algorithm import LoraSettings
from medr1_ray.config.cluster import PoolSize
from medr1_ray.config.field_types import (
    BelowOne,
    Expanded,
    Float,
    Fraction,
    Int,
    MayChange,
    NonNegativeFloat,
    NonNegativeInt,
    NotExpandedError,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
    expanded,
)
from medr1_ray.config.libraries.code import require_no_code
from medr1_ray.config.libraries.keys import require_deepspeed_keys, require_engine_keys
from medr1_ray.config.secrets import REDACTED, shown

Dtype = Literal["float32", "bfloat16"]

# Other modules rely on these: for log-probabilities of the sampled distribution, weight sync, and images that survive
# it.
ENGINE_KEYS_OF_OURS = frozenset(
    {
        "model",
        "tokenizer",
        "dtype",
        "tensor_parallel_size",
        "generation_config",
        "logprobs_mode",
        "worker_extension_cls",
        "scheduler_cls",
        "weight_transfer_config",
        "enable_sleep_mode",
        "seed",
        "additional_config",
    }
)
# The learner cuts micro-batches, sets the learning rate and chooses the precision itself, from other settings.
DEEPSPEED_KEYS_OF_OURS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
        "bf16",
        "fp16",
    }
)




def tiny_model_path() -> Path:
    """Return the folder of the checkpoint that ships with the package, for `from_pretrained` and vLLM."""
    return Path(__file__).resolve().parents[1] / "tiny" / "model"


def _whole_or_fraction(steps: float) -> float:
    if steps >= 1 and steps != int(steps):
        raise ValueError(
            f"learner.warmup_steps={steps:g}: give a whole number of steps, or a fraction of train.steps below 1"
        )
    return steps


def _refuse_own_keys(where: str, given: dict[str, Any], ours: frozenset[str]) -> None:
    clash = sorted(ours & given.keys())
    if clash:
        key = f"{where}.{clash[0]}"
        raise ValueError(
            f"{key}={shown(key, given[clash[0]])} is set by this package from other settings; remove it "
            f"(set by the package: {', '.join(sorted(ours))})"
        )


def _plain_url(url: str) -> str:
    # Settings are written to files, and a key of S3 may hold a slash: nothing before an @ is shown.
    protocol, _, rest = url.rpartition("@")[2].rpartition("://")
    if "@" in url:
        given = f"{url.partition('://')[0]}://{REDACTED}@{rest}" if "://" in url else f"{REDACTED}@{rest}"
        raise ValueError(
            f"run.storage={given!r} holds a user or a key; give the bucket and path alone, and credentials in the "
            "environment (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role)"
        )
    # Queries and chains may hold keys, too, and fsspec expands patterns.
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", protocol) or not re.fullmatch(r"/?[^\s/?#*\[\]][^\s?#*\[\]]*", rest):
        given, query, _ = url.partition("?")
        what = shown("run.storage", given + query + (REDACTED if query else ""))
        raise ValueError(
            f"run.storage={what} is not a URL of a folder; give one, for this run alone, e.g. s3://bucket/runs/a, "
            "gs://bucket/runs/a or file:///mnt/shared/runs/a"
        )
    try:
        folder = expanded(rest)
    except NotExpandedError as error:
        raise ValueError(f"run.storage={url!r}: {error}") from None
    if protocol in ("file", "local") and rest.startswith("~"):
        return f"{protocol}://{folder}".rstrip("/")
    if protocol in ("file", "local") and not rest.startswith("/"):
        raise ValueError(
            f"run.storage={url!r} is not an absolute folder; give it with three slashes, e.g. file:///{rest}"
        )
    return url.rstrip("/")


class RunSettings(Settings):
    """Where a run writes, and what it saves and reports."""

    dir: Annotated[Path, Expanded]
    storage: Annotated[str, AfterValidator(_plain_url)] | None = None
    """A URL that checkpoints, and what a resumed run needs besides, are uploaded to: `s3://bucket/path`, `gs://`,
    `file:///mnt/x`, or another of fsspec's. On a machine without them a resume brings them into `dir`."""
    storage_timeout_seconds: PositiveFloat = 600
    """A request to the storage, or a part of a file, that takes longer is given up."""
    save_every: NonNegativeInt = 0
    """Steps between checkpoints; 0: by time alone."""
    save_minutes: NonNegativeFloat = 15.0
    """A checkpoint after the first step that ends this long after the last one, besides those by steps; 0: none."""
    write_behind: bool = True
    """Copy a checkpoint to main memory and write it while the training goes on (`--dry-run` says what memory that
    takes); false: the training waits until it is written."""
    keep_checkpoints: PositiveInt = 2
    """The newest ones; the one of the best evaluation is kept besides."""
    resume: Literal["never", "auto"] = "never"
    """`auto` goes on with the run in `dir` where it has saved a checkpoint, and starts it where it has not."""
    max_restarts: NonNegativeInt = 3
    """How often a run whose learner lost a rank goes on by itself, counted since its last new checkpoint."""
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates only before and after the training."""
    rollouts_every: NonNegativeInt = 10
    """Steps between dumps of a step's rollouts; 0 writes none."""
    record_groups: bool = False
    """Write every step's groups to `recorded/`, with all that an update needs: `--replay` trains from them."""
    replay: Annotated[Path | None, Expanded] = None
    """A folder of recorded groups to learn from, in place of generated ones (`--replay`)."""
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "medr1_ray"
    tensorboard: bool = False


class ModelSettings(Settings):
    """The model to start from, and which of its weights are trained."""

    path: Annotated[str, Expanded] = "tiny"
    """A Hugging Face checkpoint folder, or `tiny` for the Qwen2-VL that ships with the package."""
    dtype: Dtype = "float32"
    """Compute dtype of engine and learner; under bfloat16 the learner keeps float32 master weights."""
    train_vision_tower: bool = True
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of the weights; engines compute with them as the learner does."""
    gradient_checkpointing: bool = False
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention of the learner's vision tower. The language model always uses that of the shared prompt
    (`model/attention.py`): FlexAttention on a GPU, SDPA on a CPU."""
    shape: Annotated[Path | None, Expanded] = None
    """Folder with the model's config.json, for `--dry-run` without the checkpoint."""

    @property
    def folder(self) -> Path:
        """The checkpoint's folder on this machine."""
        return tiny_model_path() if self.path == "tiny" else Path(self.path)


class TrainSettings(Settings):
    """The training loop."""

    steps: Annotated[PositiveInt, MayChange]
    """Optimizer steps."""
    seed: Seed = 0
    prompts_per_step: PositiveInt = 32
    group_size: Annotated[Int, Field(ge=2)] = 8
    max_staleness: NonNegativeInt = 0
    """Policy versions that a completion's oldest token may lag behind the learner; 0 is synchronous."""
    minibatches: PositiveInt = 1
    """Disjoint parts of a step's prompts, each with an optimizer step of its own (16 in DAPO, arXiv 2503.14476, section
    4.1; 4 in GSPO, arXiv 2507.18071, section 5.1)."""
    updates_per_rollout: PositiveInt = 1
    """Passes over the same rollouts, each of `minibatches` optimizer steps (mu in GRPO, arXiv 2402.03300)."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal (DAPO, arXiv 2503.14476, section 3.2)."""
    max_refills: PositiveInt = 4
    """With dynamic sampling: stop refilling a step after `max_refills` times `prompts_per_step` prompts."""

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps, and so policy versions, from one batch of rollouts to the next."""
        return self.minibatches * self.updates_per_rollout

    @property
    def overlaps(self) -> bool:
        """Whether engines may generate while the learner updates: what they sample then is a whole update old."""
        return self.max_staleness >= self.steps_per_rollout


class RolloutSettings(PoolSize):
    """Generation, and the number of rollout actors."""

    max_tokens: PositiveInt = 256
    max_prompt_tokens: PositiveInt = 1024
    """Longest prompt, visual tokens included; longer prompts are dropped and counted."""
    temperature: Annotated[Float, Field(gt=0, le=2)] = 1.0
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegativeInt = 0
    tensor_parallel_size: PositiveInt = 1
    cpus_per_actor: Annotated[PositiveFloat, MayChange] = 1.0
    gpus_per_actor: NonNegativeFloat = 0.0
    threads: Annotated[PositiveInt, MayChange] = 1
    """OpenMP threads of the engine process on a CPU."""
    engine: Annotated[dict[str, Any], MayChange] = Field(default_factory=dict)
    """vLLM engine arguments under vLLM's names."""

    @model_validator(mode="after")
    def _engine_keys(self) -> Self:
        _refuse_own_keys("rollout.engine", self.engine, ENGINE_KEYS_OF_OURS)
        require_no_code("rollout.engine", self.engine)
        require_engine_keys("rollout.engine", self.engine)
        return self


class LearnerSettings(Settings):
    """The DeepSpeed learner."""

    world_size: Annotated[PositiveInt, MayChange] = 1
    zero_stage: Annotated[Literal[1, 2, 3], MayChange] = 1
    cpus_per_rank: Annotated[PositiveFloat, MayChange] = 1.0
    gpus_per_rank: Annotated[NonNegativeFloat, MayChange] = 0.0
    threads: Annotated[PositiveInt, MayChange] = 1
    """Threads of a rank: those that cut images into patches, and OpenMP's on a CPU."""
    peak_flops: PositiveFloat | None = None
    """Peak floating-point operations per second of a rank's device, for `perf/model_flops_utilisation`; default: that
    of the GPU, if `model/operations.py` lists it."""
    learning_rate: Annotated[PositiveFloat, MayChange] = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Annotated[Float, Field(ge=0), AfterValidator(_whole_or_fraction)] = 0
    """Optimizer steps; a value below 1 is a fraction of `train.steps`, as in transformers."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: Annotated[PositiveFloat, MayChange] = 1.0
    max_skipped_steps: Annotated[PositiveInt, MayChange] = 3
    """A step whose gradient is not finite changes nothing and is counted; this many in a row end the run."""
    micro_batch_tokens: Annotated[PositiveInt, MayChange] = 8192
    """Tokens that go through the model at once, padding included. A longer group is cut into rows that fit, each with
    the prompt and some of its completions; a prompt with one completion that is longer goes alone."""
    deepspeed: Annotated[dict[str, Any], MayChange] = Field(default_factory=dict)
    """DeepSpeed settings under DeepSpeed's names, e.g. `zero_optimization.offload_optimizer`."""

    @model_validator(mode="after")
    def _deepspeed_keys(self) -> Self:
        _refuse_own_keys("learner.deepspeed", self.deepspeed, DEEPSPEED_KEYS_OF_OURS)
        sharding = self.deepspeed.get("zero_optimization", {})
        if not isinstance(sharding, dict):
            raise ValueError(
                f"learner.deepspeed.zero_optimization={sharding!r}: give a mapping of DeepSpeed's settings; the stage "
                "is learner.zero_stage"
            )
        _refuse_own_keys("learner.deepspeed.zero_optimization", sharding, frozenset({"stage"}))
        require_no_code("learner.deepspeed", self.deepspeed)
        require_deepspeed_keys("learner.deepspeed", self.deepspeed)
        offload = sharding.get("offload_optimizer")
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            raise ValueError(
                "learner.deepspeed.zero_optimization.offload_optimizer.device=nvme: an optimizer that is swapped to a "
                "disk cannot be saved in a checkpoint; give cpu, or none"
            )
        return self


class ParitySettings(Settings):
    """Allowed gap between the engine's and the learner's log-probabilities at the same policy version."""

    gap_mean_limit: PositiveFloat | None = None
    """Nats; default: 1e-3 in float32 and 2e-2 in bfloat16."""
    probe_prompts: PositiveInt = 4


class AlarmSettings(Settings):
    """When a running training calls for a person: limits of means over the last steps; null switches one off."""

    window: PositiveInt = 10
    """Steps."""
    gap_fraction: Annotated[PositiveFloat, Field(le=1)] | None = 0.5
    """Of the log-probability gap at which the parity gate ends the run."""
    entropy_below: NonNegativeFloat | None = 0.001
    """Nats a token."""
    format_below: Fraction | None = 0.5
    zero_variance_above: Fraction | None = 0.95
    truncated_above: Fraction | None = 0.3
