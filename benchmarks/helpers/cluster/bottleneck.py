"""One sentence: what held up the fastest mode, and the setting to change."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.helpers.cluster.report import Row

_EVEN = 0.1
"""Of a step: where both sides wait for less, neither holds up the other."""
_BUSY = 0.2
"""Reward actors that are idle for less are what is waited for."""
_PHASES = {
    "generation": "time/rollout_seconds",
    "the update": "time/update_seconds",
    "the weight sync": "time/weight_sync_seconds",
    "the parity gate": "time/parity_seconds",
}


def bottleneck(rows: Sequence[Row]) -> str:
    """Return the sentence about what was measured."""
    fastest = max(rows, key=lambda row: row.tokens_per_second, default=None)
    if fastest is None or not fastest.tokens_per_second:
        failed = next((row for row in rows if row.failed), None)
        why = f": the first, {failed.mode.name}, failed with: {failed.failed}" if failed else ""
        return f"No mode could be measured{why}"
    seconds, of_phase = fastest.metrics["time/step_seconds"], _seconds(fastest)
    phase = max(of_phase, key=lambda name: of_phase[name])
    begin = f"Fastest is {fastest.mode.name} with {fastest.tokens_per_second:,.0f} tokens/s: "
    if _is_even(fastest):
        return (
            f"{begin}neither side waits for the other for more than {_EVEN:.0%} of a step of {seconds:.2f} s, so that "
            f"only more devices for both make it faster (learner.world_size above {fastest.mode.ranks} and "
            f"rollout.actors above {fastest.mode.engines})."
        )
    what, setting = (_of_waiting(fastest, rows) if phase == "generation" else (phase, _setting(phase, fastest, rows)))
    share = of_phase[phase] / seconds
    return f"{begin}the bottleneck is {what}, {share:.0%} of a step of {seconds:.2f} s; change {setting}."


def _seconds(row: Row) -> dict[str, float]:
    """The driver's phases, which follow each other: they add up to the step."""
    return {name: row.metrics.get(key, 0.0) for name, key in _PHASES.items()}


def _is_even(row: Row) -> bool:
    of_phase, idle = _seconds(row), row.metrics.get("perf/rollout_idle_fraction", 1.0)
    waits = of_phase["generation"] / row.metrics["time/step_seconds"]
    return row.mode.max_staleness > 0 and waits < _EVEN and idle < _EVEN


def _of_waiting(row: Row, rows: Sequence[Row]) -> tuple[str, str]:
    """What the learner waits for when it waits for groups, and the setting."""
    if row.metrics.get("perf/reward_idle_fraction", 1.0) < _BUSY:
        return "the scoring of completions", "reward.actors to more"
    waits = _seconds(row)["generation"] / row.metrics["time/step_seconds"]
    if 1.0 - row.metrics.get("perf/rollout_idle_fraction", 0.0) < waits / 2:
        # Engines are idle as well: they get their prompts too slowly.
        return (
            "the driver, which reads images while engines and learner wait",
            "data.image_size to less, or give the driver's node more cores",
        )
    return "generation", _setting("generation", row, rows)


def _setting(phase: str, row: Row, rows: Sequence[Row]) -> str:
    mode = row.mode
    if phase == "the weight sync":
        if mode.transport == "object_store" and mode.colocated:
            return "cluster.weight_transport to ipc"
        if mode.transport == "object_store" and any(other.mode.transport == "nccl" and other.failed for other in rows):
            return "cluster.weight_transport to nccl, once what it failed of here is mended"
        return "train.prompts_per_step to more: a larger step has no more syncs"
    if phase == "the parity gate":
        return "parity.probe_prompts to 1"
    others = [other for other in rows if other is not row and other.tokens_per_second]
    if phase == "generation":
        overlapped = any(other.mode.max_staleness for other in others)
        if mode.max_staleness == 0 and not mode.colocated and not overlapped:
            return "train.max_staleness to 1, so that engines generate during the update"
        if mode.colocated:
            return "rollout.engine.gpu_memory_utilization to more, so that more completions are sampled at once"
        tried = any(other.mode.engines > mode.engines and not other.mode.colocated for other in others)
        return f"rollout.actors to more than {mode.engines}{_on_more_devices(tried)}"
    if mode.colocated:
        return "learner.micro_batch_tokens to as many as the memory holds, or add GPUs"
    tried = any(other.mode.ranks > mode.ranks and not other.mode.colocated for other in others)
    return f"learner.world_size to more than {mode.ranks}{_on_more_devices(tried)}"


def _on_more_devices(tried: bool) -> str:
    return ", on more devices: another split of these was slower" if tried else ""
