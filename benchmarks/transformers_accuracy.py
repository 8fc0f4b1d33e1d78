"""Final accuracy of a run, computed again with transformers' own `generate`: no vLLM, no Ray, no packing.

    python -m benchmarks.transformers_accuracy runs/phantom_cpu

Reads the newest checkpoint and the questions of `evaluations/after.jsonl`, answers them greedily, and prints both
accuracies; exits with 1 if they differ by more than one percentage point.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from medr1_ray.base.command_line import ArgumentParser, run_to_status
from medr1_ray.config.loading import load_config
from medr1_ray.data.images import load_image
from medr1_ray.data.prompt_templates import chat_messages
from medr1_ray.model.checkpoint_files import resolve_checkpoint
from medr1_ray.model.vocabulary import STOP_TOKENS
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.types import Question

BATCH = 50
TOLERANCE = 0.01
_END_OF_TURN = re.compile("|".join(map(re.escape, STOP_TOKENS)))


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    options = parser.parse_args()
    return run_to_status(lambda ending: compare(options.run))


def compare(run: Path) -> int:
    """Print both accuracies; return 1 if they differ.

    Raises:
        ValueError: `run` is not the directory of a finished run.
    """
    for needed in ("config.yaml", "checkpoints/latest", "evaluations/after.jsonl"):
        if not (run / needed).exists():
            raise ValueError(f"{run} is not the directory of a finished run: it has no {needed}")
    config = load_config([run / "config.yaml"])
    checkpoint = resolve_checkpoint(str(run))
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.tokenizer.padding_side = "left"  # `generate` appends to the end of each row
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()

    rows = [json.loads(line) for line in (run / "evaluations" / "after.jsonl").read_text().splitlines()]
    questions = [Question(**{**row["question"], "options": tuple(row["question"]["options"])}) for row in rows]
    correct = 0
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        chats = [
            processor.apply_chat_template(chat_messages(q, config.mode, config.prompt), add_generation_prompt=True)
            for q in batch
        ]
        images = [
            Image.fromarray(load_image(q.image_path, config.data.image_size, config.data.image_fit)) for q in batch
        ]
        inputs = processor(text=chats, images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=config.rollout.max_tokens)
        # Special tokens stay, as in the run: a checkpoint's tags may be special tokens.
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :])
        texts = [_END_OF_TURN.split(text)[0] for text in texts]
        correct += sum(
            parse_answer(text, question, config.mode).letter == question.gold_letter
            for text, question in zip(texts, batch, strict=True)
        )
    ours = sum(row["correct"] for row in rows) / len(rows)
    theirs = correct / len(rows)
    print(f"accuracy over {len(rows)} questions: {ours:.4f} in the run, {theirs:.4f} by transformers alone")
    return 0 if abs(ours - theirs) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
