"""Zero-shot evaluation of a checkpoint on phantom questions, with transformers' own `generate`.

`python -m medr1_ray.tiny.probe --model DIR` prints, for every mode and for greedy and sampled answers, the accuracy
by question type and by modality, the share of well-formed answers and (sampled) pass@8.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from medr1_ray.config import as_path, tiny_model_path
from medr1_ray.data.phantoms import MODALITIES, QUESTION_TYPES, PhantomQuestion
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.tiny.curriculum import MODES, PhantomCase, choose_turn, phantom_case, phantom_item
from medr1_ray.types import Mode, Question

PROBE_SEED = 902
BATCH = 64
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Scores:
    """Scores of one mode and way of decoding, as shares in 0..1.

    `accuracy`, `by_type` and `by_modality` are shares of correct answers, `well_formed` the share of well-formed ones.
    `any_right` is the share of questions with at least one correct answer among the samples (equal to `accuracy` if
    there is one answer per question).
    """

    accuracy: float
    well_formed: float
    any_right: float
    by_type: dict[str, float]
    by_modality: dict[str, float]
    examples: tuple[str, ...]


def probe(folder: Path, mode: Mode, phantoms: int, samples: int, seed: int = PROBE_SEED) -> Scores:
    """Ask every question about `phantoms` held-out phantoms and return the scores.

    With `samples` 0 decoding is greedy; with n, n answers are sampled at temperature 1 from the full distribution.

    Raises:
        ValueError: if `phantoms` is below 1.
    """
    if phantoms < 1:
        raise ValueError(f"phantoms is {phantoms}; it must be at least 1")
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    torch.manual_seed(seed)
    asked = [(case, q) for case in (phantom_case(seed, k) for k in range(phantoms)) for q in case.questions]
    right: dict[str, list[float]] = defaultdict(list)
    formed: list[float] = []
    passed: list[float] = []
    examples: list[str] = []
    for at in range(0, len(asked), BATCH):
        part = asked[at : at + BATCH]
        turns = [choose_turn(phantom_item(question), mode) for _, question in part]
        texts = _answers(model, processor, [turn.user for turn in turns], [case for case, _ in part], samples)
        for (case, question), replies in zip(part, texts, strict=True):
            whole = _as_question(case, question)
            parsed = [parse_answer(reply, whole, mode) for reply in replies]
            hits = [float(answer.letter == whole.gold_letter) for answer in parsed]
            formed += [float(answer.well_formed) for answer in parsed]
            passed.append(max(hits))
            right["all"].append(float(np.mean(hits)))
            right[question.question_type].append(float(np.mean(hits)))
            right[case.facts.modality].append(float(np.mean(hits)))
        examples += [replies[0] for replies in texts[:2]]
    return Scores(
        accuracy=float(np.mean(right["all"])),
        well_formed=float(np.mean(formed)),
        any_right=float(np.mean(passed)),
        by_type={name: float(np.mean(right[name])) for name in QUESTION_TYPES},
        by_modality={name: float(np.mean(right[name])) for name in MODALITIES},
        examples=tuple(examples[:4]),
    )


@torch.no_grad()
def _answers(
    model: Any, processor: Any, users: list[str], cases: list[PhantomCase], samples: int
) -> list[list[str]]:
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user}]}],
            add_generation_prompt=True,
        )
        for user in users
    ]
    images = [Image.fromarray(case.image) for case in cases]
    inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
    sampling: dict[str, object] = {"do_sample": False}
    if samples:
        sampling = {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "num_return_sequences": samples,
        }
    made = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **sampling)
    texts = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    each = max(1, samples)
    return [texts[k : k + each] for k in range(0, len(texts), each)]


def _as_question(case: PhantomCase, question: PhantomQuestion) -> Question:
    return Question(
        id="",
        image_path="",
        stem=question.stem,
        options=question.options,
        answer=question.options.index(question.answer),
        modality=case.facts.modality,
        question_type=question.question_type,
        dataset="",
    )


def table(folder: Path, phantoms: int, samples: int = 8) -> str:
    """Return a Markdown table of the scores of all modes, greedy and sampled, followed by example answers."""
    columns = ["mode", "decoding", "format", "all", f"pass@{samples}", *QUESTION_TYPES, *MODALITIES]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    examples: list[str] = []
    for mode in MODES:
        for count in (0, samples):
            scores = probe(folder, mode, phantoms, count)
            values = [scores.well_formed, scores.accuracy, scores.any_right]
            values += [*scores.by_type.values(), *scores.by_modality.values()]
            name = "sampled" if count else "greedy"
            cells = [mode, name, *(f"{100 * value:.1f}" for value in values)]
            lines.append("| " + " | ".join(cells) + " |")
            examples += [f"- {mode}, {name}: `{example}`" for example in scores.examples]
    return "\n".join([*lines, "", "Examples:", *examples])


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=as_path, default=tiny_model_path(), help="checkpoint folder")
    parser.add_argument(
        "--phantoms",
        type=int,
        default=120,
        help="number of held-out phantoms, with four questions each on average (default: 120)",
    )
    arguments = parser.parse_args()
    print(table(arguments.model, arguments.phantoms))


if __name__ == "__main__":
    main()
