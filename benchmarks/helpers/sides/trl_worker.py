"""TRL's side of `vs_trl.py`: runs in TRL's own environment and takes one GRPO step per line on stdin.

Uses neither Ray nor this package's training code, and vLLM only through TRL. Prints one JSON object per step: the
seconds of the whole step and of its phases. `vs_trl.py` runs this file by its path, with the repository on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # libraries print to stdout too: only the copy above carries answers

import torch  # noqa: E402

from benchmarks.helpers.rewards import parity  # noqa: E402
from medr1_ray.torchvision_shim import repair_imports  # noqa: E402

repair_imports()  # before transformers imports torchvision, whose CUDA build fails next to a CPU build of torch

from datasets import Dataset, Features, Image, Value  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class Stepper(TrainerCallback):  # type: ignore[misc]
    """Wait for a line on stdin before each step, and print the step's seconds after it."""

    def __init__(self, phases: dict[str, float]) -> None:
        self._phases = phases
        self._start = self._processor = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if sys.stdin.readline().strip() != "step":
            raise SystemExit(0)
        self._phases.clear()
        self._start, self._processor = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds, processor = time.perf_counter() - self._start, time.process_time() - self._processor
        answer = {"seconds": seconds, "processor_seconds": processor, "phases": self._phases}
        print(json.dumps(answer), file=ANSWERS)


def timed(method: Callable[..., Any], phase: str, phases: dict[str, float]) -> Callable[..., Any]:
    """Return `method` wrapped so that it adds its seconds to `phases[phase]`."""

    def run(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            phases[phase] = phases.get(phase, 0.0) + time.perf_counter() - start

    return run


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Return the benchmark's reward of each completion, which TRL passes as a chat."""
    return [parity(completion[0]["content"]) for completion in completions]


def _generation(vllm: bool, banned: list[int]) -> dict[str, Any]:
    """Return TRL's settings for generation: transformers' generate, or a vLLM engine in this process.

    With vLLM, importance-sampling correction is off: it takes another forward pass, and only engines whose
    log-probabilities differ from the learner's need it.
    """
    if not vllm:
        return {"generation_kwargs": {"suppress_tokens": banned}}
    never = dict.fromkeys(banned, -100.0)
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 1024,
        "vllm_importance_sampling_correction": False,
        "generation_kwargs": {"logit_bias": never, "ignore_eos": True},
    }


def main() -> None:
    """Run TRL's trainer; its settings come as one JSON argument, made by `trl_steps` of `vs_trl.py`."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["prompts"])
    rows = json.loads((folder / "prompts.json").read_text())
    dataset = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": row["text"]}], "image": str(folder / row["image"])}
            for row in rows
        ],
        features=Features(
            {"prompt": [{"role": Value("string"), "content": Value("string")}], "image": Image()}
        ),
    )
    model = AutoModelForImageTextToText.from_pretrained(settings["model"], dtype=torch.float32)
    config = model.config
    banned = [
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    ]
    completions = settings["prompts_per_step"] * settings["group_size"]
    micro_batches = settings["micro_batches"]
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=completions // micro_batches,
        gradient_accumulation_steps=micro_batches,
        generation_batch_size=completions,
        num_generations=settings["group_size"],
        max_completion_length=settings["tokens"],
        **_generation(settings["vllm"], banned),
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=settings["beta"],
        loss_type="grpo",
        epsilon=0.2,
        scale_rewards="group",
        learning_rate=1e-6,
        max_grad_norm=1.0,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        max_steps=10**6,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    phases: dict[str, float] = {}
    trainer = GRPOTrainer(
        model=model,
        args=arguments,
        processing_class=AutoProcessor.from_pretrained(settings["model"]),
        reward_funcs=reward,
        train_dataset=dataset,
        callbacks=[Stepper(phases)],
    )
    trainer._generate = timed(trainer._generate, "rollout", phases)
    trainer._generate_and_score_completions = timed(
        trainer._generate_and_score_completions, "rollout, reward and reference", phases
    )
    trainer.training_step = timed(trainer.training_step, "all but the optimizer", phases)
    print(json.dumps({"ready": True}), file=ANSWERS)
    trainer.train()


if __name__ == "__main__":
    main()
