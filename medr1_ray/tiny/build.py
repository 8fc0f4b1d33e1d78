"""Building the tiny Qwen2-VL: tokenizer, weights, pre-training, a look at what it can do, and its model card."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch

from medr1_ray.tiny import probe
from medr1_ray.tiny.architecture import build_model, save
from medr1_ray.tiny.curriculum import corpus
from medr1_ray.tiny.eyes import EyePlan, open_eyes
from medr1_ray.tiny.network import FastForward
from medr1_ray.tiny.pretrain import Plan, pretrain
from medr1_ray.tiny.tokenizer import train_tokenizer

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# medr1_ray tiny: a Qwen2-VL of {millions:.2f} million parameters

A real `Qwen2VLForConditionalGeneration` for tests, demonstrations and CPU runs of `medr1_ray`: Qwen2-VL's special
tokens, chat template and image processor, but weights of its own, made in half an hour on one CPU core.
It knows nothing of medicine and must not be used for it.

- **Build**: `python -m medr1_ray.tiny --out DIR --seed {seed}`; the log is `medr1_ray/tiny/build_log.txt`.
- **Start**: random, but for the language model's attention, which starts as an induction circuit (`architecture.py`
  says how and why: matching a name with its option is learned in minutes then, not in hours).
- **Eyes first**: the vision tower alone learns to point at the words of descriptions (`eyes.py`).
- **Then taught** ({steps} steps): everyday multiple-choice questions about pictures of coloured shapes; descriptions
  of shapes and of phantoms (procedural images, `medr1_ray.data.phantoms`); choosing the option that a text names or
  that follows from a written report, without a picture. All three prompt modes of Med-R1 occur.
- **Never taught**: to answer a question about a phantom's picture, but for the cold start. It can
  describe a phantom and it can find an option; to join the two is left to reinforcement learning.
- **Cold start**: {cold}.
- **Tokenizer**: byte-level BPE of its own. An option's letter is one token, the same in the prompt and in the answer;
  `<think>`, `</think>`, `<answer>`, `</answer>` and each constant sentence of the prompt templates are one token each
  (not special), so `<answer>C</answer><|im_end|>` is four tokens.
- **Images**: 84 x 84 pixels give 9 visual tokens, 392 x 392 (the largest) 196. It was trained at 84 x 84 only.

## Zero-shot on held-out phantoms (per cent; sampled at temperature 1)

{table}
"""


def build(out: Path, seed: int, steps: int | None, threads: int) -> None:
    """Train the tokenizer, build, pre-train and probe the model; log to the screen and `out/build_log.txt`.

    `steps` are optimizer steps; None: those of the shipped model.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    log_path = out / "build_log.txt"

    def log(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)
        with log_path.open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")

    plan = Plan() if steps is None else Plan(steps=steps)
    tokenizer = train_tokenizer(corpus(seed))
    model = build_model(tokenizer, seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log(f"seed {seed}, torch {torch.__version__}, {platform.machine()}, threads {threads}")
    log(f"{plan}, vocabulary {len(tokenizer)}, parameters {parameters}")
    checkpoint = out / "state.pt"
    if not checkpoint.exists():  # a checkpoint already contains the trained vision tower
        log(str(EyePlan()))
        open_eyes(FastForward(model), tokenizer, EyePlan(), seed, log)
    pretrain(model, tokenizer, plan, seed, log, checkpoint)
    folder = out / "model"
    save(folder, model, tokenizer)
    zero_shot = probe.table(folder, phantoms=160)
    log("zero-shot on held-out phantoms\n" + zero_shot)
    (folder / "README.md").write_text(model_card(plan, seed, parameters, zero_shot), encoding="utf-8")


def model_card(plan: Plan, seed: int, parameters: int, table: str) -> str:
    """Return the model card of one build; `table` is the probe's Markdown table."""
    cold = (
        f"{plan.cold_start_steps * plan.cold_start_gradings} questions for the grade of a lesion and "
        f"{plan.cold_start_steps * plan.cold_start_diagnoses} for its presence, on phantoms of seed "
        f"{plan.cold_start_seed}, once each, in {plan.cold_start_steps} last steps: without them its answers to these "
        "do not depend on the image"
    )
    millions = parameters / 1e6
    return _CARD.format(millions=millions, seed=seed, steps=plan.steps, cold=cold, table=table)
