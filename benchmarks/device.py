"""Training step with shared prompts on one GPU, at Qwen2-VL-2B's full shape, with torch and transformers alone.

    python -m benchmarks.device [--quick] [--json] [--model qwen2vl_2b] [--device cuda] [--profile]

`ours` packs each group into one row under the block-sparse mask (FlexAttention); `theirs` has one row per completion,
each with the prompt and its image. Both run forward, backward and fused AdamW in bfloat16 on random weights, in turns.
On a CPU the same steps run with SDPA, in float32 and at a small shape: that checks the logic and says nothing about a
GPU. The result's `settings` hold peak memory, tokens per second and MFU (docs/performance.md has the formula).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Qwen2VLConfig

from benchmarks.helpers.common import Result, command, interleaved, median_seconds, progress
from benchmarks.helpers.shapes import Shape, checkpoint, random_groups, run_config, update_request
from medr1_ray.model.attention import SHARED_PROMPT_ATTENTION
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.operations import forward_flops, peak_flops
from medr1_ray.model.packing import PackedBatch, pack_groups, pack_plain
from medr1_ray.model.policy import Policy
from medr1_ray.model.shape import read_shape
from medr1_ray.model.vocabulary import load_vocabulary


def build_policy(shape: Shape, device: torch.device) -> Policy:
    """Return a policy of this shape with random weights, created on the device."""
    folder = checkpoint(shape.model)
    config = Qwen2VLConfig.from_pretrained(folder)
    attention = {"text_config": SHARED_PROMPT_ATTENTION, "vision_config": "sdpa"}
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    return Policy(model.train(), load_vocabulary(folder), 1.0).to(device)


def batches_of(policy: Policy, shape: Shape, plain: bool, micro_batch_tokens: int) -> list[PackedBatch]:
    """Return the step's micro-batches, on the policy's device."""
    config = run_config(shape, "device", [f"learner.micro_batch_tokens={micro_batch_tokens}"])
    request = update_request(config, random_groups(config, shape), shape, plain)
    patch = ImagePatcher(checkpoint(shape.model))
    pack = pack_plain if plain else pack_groups
    vocabulary = policy.vocabulary
    batches = []
    for micro_batch in request.mini_batches[0].micro_batches:
        members = [(request.groups[i].prompt, request.groups[i].completions) for i in micro_batch.groups]
        images = patch([prompt.image for prompt, _ in members])
        batch = pack(members, images, vocabulary.image_pad, vocabulary.pad, policy.prompt_positions)
        batches.append(batch.to(policy.head.weight.device))
    return batches


def training_step(
    policy: Policy, optimizer: torch.optim.Optimizer, batches: list[PackedBatch], peaks: dict[str, int], side: str
) -> Callable[[], float]:
    """Return a function that runs forward, backward and optimizer and returns their seconds.

    On a GPU it also writes the peak of allocated memory, in bytes, to `peaks[side]`.
    """
    on_gpu = policy.head.weight.is_cuda

    def run() -> float:
        if on_gpu:  # kernels run asynchronously: wait for them before reading the clock
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        for batch in batches:
            policy(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
            peaks[side] = torch.cuda.max_memory_allocated()
        return time.perf_counter() - start

    return run


def profile(step: Callable[[], float]) -> str:
    """Return a table of the operations of one step, those first that have the most of the device's time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as seen:
        step()
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return seen.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=25, max_name_column_width=60)


def measure(shape: Shape, device: torch.device, micro_batch_tokens: int, rounds: int, profiled: bool) -> Result:
    policy = build_policy(shape, device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    batches = {side: batches_of(policy, shape, side == "plain", micro_batch_tokens) for side in ("shared", "plain")}
    progress(f"{shape}: model and tensors are on {device}")
    peaks: dict[str, int] = {}
    sides = {side: training_step(policy, optimizer, batches[side], peaks, side) for side in batches}
    times = interleaved(sides, rounds, warm_up=2)
    progress(f"{shape}: {times}")
    if profiled:
        progress(profile(sides["shared"]))
    seconds = {side: median_seconds(values) for side, values in times.items()}
    config = run_config(shape, "device", ["loss.kl_beta=0"])
    groups = [(group.prompt, group.completions) for group in random_groups(config, shape)]
    flops = forward_flops(read_shape(checkpoint(shape.model)), groups).update(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = peak_flops(name)
    settings: dict[str, Any] = {
        "device": name,
        "micro_batch_tokens": micro_batch_tokens,
        "rounds": rounds,
        "peak_bytes": peaks,
        "tokens_per_second": sum(batch.input_ids.numel() for batch in batches["shared"]) / seconds["shared"],
        "model_flops": flops,
        "model_flops_utilisation": None if peak is None else flops / seconds["shared"] / peak,
    }
    return Result(
        f"training step, {shape}, {name}",
        seconds["shared"],
        seconds["plain"],
        "s",
        seconds["plain"] / seconds["shared"],
        None,
        settings,
    )


def benchmark(arguments: argparse.Namespace) -> list[Result]:
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda, but torch sees no GPU here; use --device cpu --model tiny to check the logic")
    torch.set_num_threads(1)  # on a CPU, threads that wait for each other on busy cores are a hundred times slower
    prompts, tokens = (2, (12,)) if device.type == "cpu" else (8, (64, 256))
    rounds = 1 if arguments.quick else 5
    return [
        measure(
            Shape(arguments.model, prompts, 8, count),
            device,
            arguments.micro_batch_tokens,
            rounds,
            arguments.profile,
        )
        for count in (tokens[:1] if arguments.quick else tokens)
    ]


def options(parser: argparse.ArgumentParser) -> None:
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", help="cuda or cpu")
    parser.add_argument(
        "--model",
        default="qwen2vl_2b" if on_gpu else "tiny",
        choices=["tiny", "bench30m", "qwen2vl_2b"],
        help="shape of the model, whose weights are random",
    )
    parser.add_argument("--profile", action="store_true", help="print what one step with shared prompts spends")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192, help="tokens per micro-batch, padding included")


if __name__ == "__main__":
    sys.exit(command(__doc__, benchmark, options))
