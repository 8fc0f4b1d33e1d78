"""Every setting of a run, checked before any actor starts. Loading and overrides: `config_loading.py`.

Settings under `rollout.engine` and `learner.deepspeed` go to vLLM and DeepSpeed under their own names; a key
there that this package sets itself is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from medr1_ray import tiny
from medr1_ray.config_base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings
from medr1_ray.config_data import DataSettings
from medr1_ray.types import Mode

Dtype = Literal["float32", "bfloat16"]

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
        "seed",
    }
)
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


S = TypeVar("S", bound=Settings)


def _refuse_own_keys(settings: S, where: str, given: dict[str, Any], ours: frozenset[str]) -> S:
    clash = sorted(ours & given.keys())
    if clash:
        raise ValueError(
            f"{where}.{clash[0]}={given[clash[0]]!r} is set by this package from other settings; remove it "
            f"(set by the package: {', '.join(sorted(ours))})"
        )
    return settings


class RunSettings(Settings):
    """Where a run writes and what it reports."""

    dir: Path
    save_every: NonNegativeInt = 0
    """Steps between checkpoints; 0 saves at the end only."""
    keep_checkpoints: PositiveInt = 2
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates before and after only."""
    rollouts_every: NonNegativeInt = 10
    """Steps between dumps of a step's rollouts; 0 writes none."""
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "medr1_ray"
    tensorboard: bool = False


class ModelSettings(Settings):
    """The policy to start from."""

    path: str = "tiny"
    """A Hugging Face checkpoint folder, or `tiny` for the Qwen2-VL that ships with the package."""
    dtype: Dtype = "float32"
    """Compute type of engine and learner; the learner keeps float32 masters under bfloat16."""
    train_vision_tower: bool = True
    gradient_checkpointing: bool = False
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Attention of the learner's vision tower; the language model always uses the shared-prompt mask (SDPA)."""
    shape: Path | None = None
    """A folder with the config.json of the model, for `--dry-run` where the checkpoint is not at hand."""

    @property
    def folder(self) -> Path:
        """The checkpoint's folder on this machine."""
        return tiny.model_path() if self.path == "tiny" else Path(self.path)


class TrainSettings(Settings):
    """The loop."""

    steps: PositiveInt
    """Optimizer steps."""
    seed: int = 0
    prompts_per_step: PositiveInt = 32
    group_size: Annotated[int, Field(ge=2)] = 8
    max_staleness: NonNegativeInt = 0
    """Policy versions that a completion's oldest token may lag behind the learner; 0 is synchronous."""
    updates_per_rollout: PositiveInt = 1
    """Optimizer steps taken on the same rollouts (mu in GRPO)."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal by new ones (DAPO, arXiv 2503.14476, section 3.2)."""
    max_refills: PositiveInt = 4
    """With dynamic sampling: stop refilling a step after this many times `prompts_per_step` prompts."""


class RolloutSettings(Settings):
    """Generation."""

    actors: PositiveInt = 1
    max_tokens: PositiveInt = 256
    max_prompt_tokens: PositiveInt = 1024
    """Longest prompt, visual tokens included; longer ones are dropped and counted."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegativeInt = 0
    tensor_parallel_size: PositiveInt = 1
    cpus_per_actor: PositiveFloat = 1.0
    gpus_per_actor: NonNegativeFloat = 0.0
    threads: PositiveInt = 1
    """OpenMP threads of the engine process on a CPU."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine arguments, under vLLM's names."""

    @model_validator(mode="after")
    def _engine_keys(self) -> Self:
        return _refuse_own_keys(self, "rollout.engine", self.engine, ENGINE_KEYS_OF_OURS)


class RewardSettings(Settings):
    """Reward functions by name (or `module:function`) with their weights."""

    functions: dict[str, float] = Field(
        default_factory=lambda: {"accuracy": 1.0, "format": 1.0}, min_length=1
    )
    timeout_seconds: PositiveFloat = 10.0
    actors: PositiveInt = 1


class LossSettings(Settings):
    """The GRPO objective (`grpo.py` has the equations)."""

    advantage_std: bool = True
    """Divide by the group's standard deviation (GRPO); off in Dr. GRPO (arXiv 2503.20783)."""
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    aggregation: Literal["sequence", "token", "dr_grpo"] = "sequence"
    kl_beta: NonNegativeFloat = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: PositiveFloat | None = 2.0
    """Cap of the truncated importance weight policy / rollout; none leaves the weight out."""


class ReferenceSettings(Settings):
    """The frozen start model, held by the learner ranks when `loss.kl_beta` > 0."""

    placement: Literal["device", "cpu"] = "device"
    sharded: bool = False
    """Shard its parameters over the ranks (ZeRO-3)."""


class LearnerSettings(Settings):
    """The DeepSpeed learner."""

    world_size: PositiveInt = 1
    zero_stage: Literal[1, 2, 3] = 1
    cpus_per_rank: PositiveFloat = 1.0
    gpus_per_rank: NonNegativeFloat = 0.0
    threads: PositiveInt = 1
    """OpenMP threads of a rank on a CPU."""
    learning_rate: PositiveFloat = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: NonNegativeInt = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    micro_batch_tokens: PositiveInt = 8192
    """Padded tokens that go through the model at once (a group is never cut)."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed settings, under DeepSpeed's names, e.g. `zero_optimization.offload_optimizer`."""

    @model_validator(mode="after")
    def _deepspeed_keys(self) -> Self:
        sharding = self.deepspeed.get("zero_optimization", {})
        _refuse_own_keys(self, "learner.deepspeed.zero_optimization", sharding, frozenset({"stage"}))
        return _refuse_own_keys(self, "learner.deepspeed", self.deepspeed, DEEPSPEED_KEYS_OF_OURS)


class ParitySettings(Settings):
    """How far the engine's log-probabilities may be from the learner's at the same policy version."""

    gap_mean_limit: PositiveFloat | None = None
    """Nats; by default 1e-3 in float32 and 2e-2 in bfloat16."""
    probe_prompts: PositiveInt = 4


class ClusterSettings(Settings):
    """Ray, and the deadlines of everything that waits."""

    address: str | None = None
    """Ray address; none joins the cluster of the job (RAY_ADDRESS) or starts a local one."""
    placement_timeout_seconds: PositiveFloat = 120.0
    start_timeout_seconds: PositiveFloat = 600.0
    rollout_timeout_seconds: PositiveFloat = 600.0
    update_timeout_seconds: PositiveFloat = 1800.0
    sync_timeout_seconds: PositiveFloat = 300.0


class Config(Settings):
    """All settings of a run."""

    mode: Mode = "no_think"
    run: RunSettings
    model: ModelSettings = ModelSettings()
    data: DataSettings
    train: TrainSettings
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    loss: LossSettings = LossSettings()
    reference: ReferenceSettings = ReferenceSettings()
    learner: LearnerSettings = LearnerSettings()
    parity: ParitySettings = ParitySettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def gap_mean_limit(self) -> float:
        """Nats: the parity limit in force."""
        if self.parity.gap_mean_limit is not None:
            return self.parity.gap_mean_limit
        return 1e-3 if self.model.dtype == "float32" else 2e-2

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        rollout, train = self.rollout, self.train
        if self.loss.importance_cap is not None and (rollout.top_p < 1 or rollout.top_k > 0):
            raise ValueError(
                f"rollout.top_p={rollout.top_p}, rollout.top_k={rollout.top_k}: the rollout log-probabilities "
                "are used for importance ratios (loss.importance_cap is set), which are wrong under a truncated "
                "distribution. Use top_p=1 and top_k=0, or set loss.importance_cap to null"
            )
        if self.loss.importance_cap is None and train.max_staleness > 0:
            raise ValueError(
                f"train.max_staleness={train.max_staleness} needs loss.importance_cap (a positive number, e.g. "
                "2.0): completions of older versions would be learned from uncorrected"
            )
        if train.steps % train.updates_per_rollout:
            raise ValueError(
                f"train.steps={train.steps} is not a multiple of train.updates_per_rollout="
                f"{train.updates_per_rollout}; choose a multiple"
            )
        if train.prompts_per_step < self.learner.world_size:
            raise ValueError(
                f"train.prompts_per_step={train.prompts_per_step} is less than learner.world_size="
                f"{self.learner.world_size}: a rank would have no group; use at least {self.learner.world_size}"
            )
        if self.data.format == "medr1" and not (self.data.train_file and self.data.eval_file):
            raise ValueError(
                f"data.train_file={self.data.train_file}, data.eval_file={self.data.eval_file}: "
                "data.format=medr1 needs both (annotation files relative to data.root)"
            )
        return self
