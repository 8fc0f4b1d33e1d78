"""`python -m medr1_ray.tiny --out DIR --seed S`: build the tiny Qwen2-VL from a seed."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import torch

from medr1_ray.base.command_line import ArgumentParser, run_to_status
from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import require_lasting
from medr1_ray.tiny import probe
from medr1_ray.tiny.architecture import build_model, save
from medr1_ray.tiny.curriculum import corpus
from medr1_ray.tiny.eyes import EyePlan, open_eyes
from medr1_ray.tiny.model_card import model_card
from medr1_ray.tiny.network import FastForward
from medr1_ray.tiny.pretrain import Plan, pretrain
from medr1_ray.tiny.tokenizer import train_tokenizer


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and build the model; return the exit status."""
    parser = ArgumentParser(prog="python -m medr1_ray.tiny", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for model/, state.pt and build_log.txt"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument(
        "--steps", type=int, default=Plan.steps, help="optimizer steps; fewer give a weaker model"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads; the shipped model was built with 1"
    )
    options = parser.parse_args(arguments)
    return run_to_status(lambda ending: build(options))


def build(arguments: argparse.Namespace) -> int:
    """Train the tokenizer, build, pre-train and probe the model; log to the screen and `DIR/build_log.txt`."""
    for name in ("steps", "threads"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: give 1 or more")
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: give 0 or more")
    require_lasting("--out", arguments.out)
    require_writable(f"--out {arguments.out}", arguments.out)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    log_path = arguments.out / "build_log.txt"

    def log(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)
        with log_path.open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")

    plan = Plan(steps=arguments.steps)
    tokenizer = train_tokenizer(corpus(arguments.seed))
    model = build_model(tokenizer, arguments.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log(
        f"seed {arguments.seed}, torch {torch.__version__}, {platform.machine()}, threads {arguments.threads}"
    )
    log(f"{plan}, vocabulary {len(tokenizer)}, parameters {parameters}")
    checkpoint = arguments.out / "state.pt"
    if not checkpoint.exists():  # a checkpoint already contains the trained vision tower
        log(str(EyePlan()))
        open_eyes(FastForward(model), tokenizer, EyePlan(), arguments.seed, log)
    pretrain(model, tokenizer, plan, arguments.seed, log, checkpoint)
    folder = arguments.out / "model"
    save(folder, model, tokenizer)
    zero_shot = probe.table(folder, phantoms=160)
    log("zero-shot on held-out phantoms\n" + zero_shot)
    (folder / "README.md").write_text(
        model_card(plan, arguments.seed, parameters, zero_shot), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
