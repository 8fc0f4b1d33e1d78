"""The `hardware` settings of a machine, from rates measured one by one and from training steps of one small model.

The rates of matrix products, memory, copies and digests are measured; all other costs are fitted to the part of the
step times that those rates do not explain.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.helpers.calibration.step_measurement import Case, StepSeconds
from medr1_ray.config import Config, HardwareSettings
from medr1_ray.model.shape import ModelShape
from medr1_ray.sizing.work import StepSize, learner_work, rollout_work


@dataclass(frozen=True)
class Measured:
    """Medians over the repetitions of one case."""

    case: Case
    busy: StepSeconds
    wall: StepSeconds


def machine_rates(threads: int) -> dict[str, float]:
    """Measure FLOPs of matrix products, and bytes read or written, copied and digested, all per second of CPU time."""
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    data = np.ones(2**26, np.uint8)
    copied = data.size / _seconds(data.copy)
    return {
        "matmul_flops_per_second": 2 * 1024**3 / _seconds(lambda: a @ b),
        "memory_bytes_per_second": 2 * copied,
        "copied_bytes_per_second": copied,
        "digested_bytes_per_second": data.size / _seconds(lambda: hashlib.blake2b(data, digest_size=16)),
    }


def fit(
    config: Config, shape: ModelShape, text_tokens: int, steps: Sequence[Measured], rates: dict[str, float]
) -> HardwareSettings:
    """Fit the costs of the other parts to the part of the `steps` that the measured `rates` do not explain.

    Non-negative least squares of the relative errors, for learner and engine separately.
    """
    flops, memory = rates["matmul_flops_per_second"], rates["memory_bytes_per_second"]
    sizes = [step_size(step.case, text_tokens) for step in steps]
    updates = [learner_work(config, shape, size, ranks=1) for size in sizes]
    rollouts = [rollout_work(config, shape, size, actors=1) for size in sizes]
    learner = _non_negative(
        [
            (w.attention_flops, w.activation_bytes, w.layer_starts, z.prompts * z.image_size**2 / 1e6)
            for w, z in zip(updates, sizes, strict=True)
        ],
        [
            s.busy.update - w.matmul_flops / flops - w.memory_bytes / memory
            for s, w in zip(steps, updates, strict=True)
        ],
        [step.busy.update for step in steps],
    )
    engine = _non_negative(
        [
            (
                w.attention_flops,
                w.layer_starts,
                z.prompts,
                z.prompts * z.group_size,
                z.prompts * z.group_size * z.completion_tokens,
            )
            for w, z in zip(rollouts, sizes, strict=True)
        ],
        [
            s.busy.rollout - w.matmul_flops / flops - w.memory_bytes / memory
            for s, w in zip(steps, rollouts, strict=True)
        ],
        [step.busy.rollout for step in steps],
    )
    # Digests: one by the learner, one by the engine. Copies: into the bucket, the object store, the file and the
    # engine, which copies again into the layout of its kernel.
    sync_rate = 1 / (2 / rates["digested_bytes_per_second"] + 6 / rates["copied_bytes_per_second"])
    sync = statistics.median(step.busy.weight_sync for step in steps) - 4 * shape.parameters / sync_rate
    common = {"matmul_flops_per_second": flops, "memory_bytes_per_second": memory}
    return HardwareSettings.model_validate(
        {
            "learner": common
            | {
                "attention_flops_per_second": _rate(learner[0]),
                "activation_bytes_per_second": _rate(learner[1]),
                "layer_seconds": learner[2],
            },
            "rollout": common | {"attention_flops_per_second": _rate(engine[0]), "layer_seconds": engine[1]},
            "image_seconds_per_megapixel": learner[3],
            "prompt_seconds": engine[2],
            "completion_seconds": engine[3],
            "token_seconds": engine[4],
            "sync_seconds": max(0.0, sync),
            "sync_bytes_per_second": sync_rate,
        }
    )


def step_size(case: Case, text_tokens: int) -> StepSize:
    """Return the case as a `StepSize`, with the prompt's number of text tokens."""
    return StepSize(case.prompts, case.group_size, case.completion_tokens, case.image_size, text_tokens)


def _non_negative(
    features: Sequence[tuple[float, ...]], left: Sequence[float], whole: Sequence[float]
) -> list[float]:
    """Return coefficients >= 0 with which `features` fit `left`, weighting errors by 1 / `whole`.

    The active-set method of Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.
    """
    weights = 1 / np.array(whole)
    matrix, target = np.array(features, float) * weights[:, None], np.array(left) * weights
    scale = np.abs(matrix).max(axis=0)  # features differ by many orders of magnitude (FLOPs, bytes, counts)
    matrix = matrix / scale
    solution, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], bool)
    while True:
        gradient = np.where(free, -np.inf, matrix.T @ (target - matrix @ solution))
        if gradient.max() <= 1e-9:
            return list((solution / scale).tolist())
        free[gradient.argmax()] = True
        while True:
            trial = np.zeros_like(solution)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            negative = free & (trial <= 0)
            if not negative.any():
                break
            step = (solution[negative] / (solution[negative] - trial[negative])).min()
            solution = solution + step * (trial - solution)
            free &= solution > 1e-12
        solution = trial


def _rate(seconds_each: float) -> float | None:
    return 1 / seconds_each if seconds_each > 0 else None


def _seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of this thread for one call: the median of nine, after one to warm up."""
    spent = []
    for _ in range(10):
        start = time.thread_time()
        call()
        spent.append(time.thread_time() - start)
    return statistics.median(spent[1:])
