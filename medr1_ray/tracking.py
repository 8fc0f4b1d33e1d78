"""What a run writes down while it goes: metrics, rollouts, spans and the summary; wandb and TensorBoard if asked.

    metrics.jsonl                one JSON object a line, `step` first; steps never go down
    metrics.discarded-<n>.jsonl  lines of steps that were done again, because the run was resumed before them
    rollouts/step-000010.jsonl   one JSON object a completion
    spans.jsonl                  one JSON object a phase of an actor; never cut: it is what the machines did
    timeline.json                the same as a Chrome trace, written at the end (timeline.py)
    summary.json                 renamed into place

JSON has no NaN: a number that is not finite is written as "NaN", "Infinity" or "-Infinity" (Python's `float` reads
them back), and warned of. null is a metric for which there was nothing to measure.
"""

from __future__ import annotations

import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medr1_ray.config import Config
from medr1_ray.timeline import write_timeline
from medr1_ray.types import Group, Span

METRICS: dict[str, str] = {
    "reward/total_mean": "weighted sum of the reward functions, mean over the step's completions",
    "reward/total_std": "the same, standard deviation over the step's completions",
    "reward/group_std_mean": "standard deviation (unbiased) of the total reward within a group, mean over groups",
    "reward/accuracy_mean": "completions with the gold letter (default parser, whatever the reward functions)",
    "reward/format_mean": "completions that keep the mode's format (default parser), as a fraction",
    "reward/zero_variance_fraction": "groups of this step whose total rewards are all equal, as a fraction",
    "completion/length_tokens_mean": "tokens of a completion (SFT: imitated), end-of-sequence included, mean",
    "completion/length_tokens_max": "the same, largest of the step",
    "completion/truncated_fraction": "completions that the length limit stopped, as a fraction",
    "completion/no_answer_fraction": "completions in which the default parser found no letter, as a fraction",
    "policy/entropy": "estimate of the policy's entropy: -mean log-probability of the sampled tokens, in nats",
    "policy/ratio_max": "largest ratio of policy to old policy of a token",
    "policy/clip_low_fraction": "tokens whose ratio was clipped from below, as a fraction",
    "policy/clip_high_fraction": "tokens whose ratio was clipped from above, as a fraction",
    "policy/importance_mean": "truncated importance weight (old policy over rollout) of a token, mean",
    "policy/importance_capped_fraction": "tokens whose importance weight was capped, as a fraction",
    "policy/kl": "KL to the reference by the chosen estimator, nats a token, mean",
    "policy/logprob_gap_mean": "|policy - rollout| log-probability at equal versions, nats a token, mean",
    "policy/logprob_gap_max": "the same, largest",
    "policy/version_drift": "|policy - rollout| log-probability of tokens of older versions, nats a token, mean",
    "loss/total": "the objective, mean over this update's optimizer steps; SFT: -log-likelihood of a token, nats, mean",
    "optim/grad_norm": "norm of the gradient before clipping, mean over the optimizer steps of this update",
    "optim/learning_rate": "learning rate of the last optimizer step",
    "staleness/mean": "learner version at use minus version that sampled the token, mean over tokens",
    "staleness/max": "the same, largest",
    "ledger/groups_issued": "groups issued since the run began",
    "ledger/groups_used": "of these, learned from",
    "ledger/groups_in_flight": "of these, not yet ended",
    "ledger/groups_dropped": "of these, dropped for a counted reason",
    "ledger/groups_zero_variance": "used groups with equal rewards since the run began",
    "ledger/groups_reissued": "times that a group was issued again because its rollout actor was lost",
    "ledger/answers_late": "answers of rollout actors that had been given up, dropped",
    "ledger/prompts_dropped": "training questions passed over (too long, image unreadable, pass rate)",
    "pool/actors_wanted": "rollout actors that there should be",
    "pool/actors_serving": "rollout actors that hold the current weights and take prompts",
    "pool/actors_lost": "rollout actors that died, failed or passed a deadline since the run began",
    "time/step_seconds": "rollout (SFT: reading data), update, weight sync and parity gate of this step together",
    "time/rollout_seconds": "the driver waiting for groups",
    "time/reward_seconds": "reward actors at work, beside generation",
    "time/update_seconds": "the learner's update",
    "time/weight_sync_seconds": "weights from the learner to all rollout actors",
    "time/parity_seconds": "probes of the parity gate",
    "time/evaluation_seconds": "evaluations since the step before",
    "time/checkpoint_seconds": "checkpoints since the step before",
    "perf/learner_idle_fraction": "share of time/step_seconds that a learner rank does nothing, mean over ranks",
    "perf/rollout_idle_fraction": "share of time/step_seconds that a rollout actor has no request, mean over actors",
    "perf/reward_idle_fraction": "share of time/step_seconds that a reward actor scores nothing, mean over actors",
    "perf/cost_per_1000_groups": "time/step_seconds of all machines at hardware.*.price_per_hour, for 1000 groups",
    "perf/completions_per_second": "completions learned from, over time/step_seconds",
    "perf/rollout_tokens_per_second": "tokens of completions learned from, over time/step_seconds",
    "perf/learner_tokens_per_second": "tokens through the learner's model, prompts included, over its update",
    "perf/generation_tokens_per_second": "tokens of completions learned from, over the time that any engine generated",
    "perf/reference_tokens_per_second": "tokens through the reference, prompts included, over its forward passes",
    "perf/gradient_tokens_per_second": "tokens through the policy, over its forward and backward passes",
    "perf/model_flops_utilisation": "operations that the update needs, over its seconds and the devices' peak",
    "eval/accuracy": "greedy answers on the held-out questions with the gold letter, as a fraction",
    "eval/format": "greedy answers on the held-out questions that keep the format, as a fraction",
}

_log = logging.getLogger(__name__)


def prometheus_name(metric: str) -> str:
    """The name under which Ray exports a metric: `ray_medr1_reward_total_mean` for `reward/total_mean`."""
    return f"ray_medr1_{metric.replace('/', '_')}"


class Tracker:
    """Writes the files above into `directory`.

    Args:
        config: the run's settings; `run.wandb` and `run.tensorboard` say where metrics go beside the files.
        directory: `<run>`, created where it is missing.
        step: steps done so far; 0 for a new run. What a resumed run had written of later steps is moved aside.
        publish: is given the same metrics as the files.

    Raises:
        ValueError: a package that the settings ask for is not installed.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        step: int = 0,
        publish: Callable[[Mapping[str, float | None]], None] | None = None,
    ) -> None:
        self._directory = directory
        self._publish = publish
        self._advantage_std = config.loss.advantage_std
        self._metrics = directory / "metrics.jsonl"
        self._rollouts = directory / "rollouts"
        self._rollouts.mkdir(parents=True, exist_ok=True)
        self._last_step = step
        self._discard_after(step)
        mode = config.run.wandb
        self._wandb = _open_wandb(config, mode, directory) if mode != "off" else None
        self._tensorboard = _open_tensorboard(directory, step) if config.run.tensorboard else None

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one line; names are those of `METRICS`, None says that there was nothing to measure.

        Raises ValueError for a name that is not documented, and for a step before the last one.
        """
        for name in metrics:
            if name not in METRICS:
                near = get_close_matches(name, METRICS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"metric {name!r} is not documented in tracking.METRICS{hint}")
        if step < self._last_step:
            raise ValueError(
                f"metrics of step {step} after those of step {self._last_step}: steps never go down"
            )
        self._last_step = step
        numbers = {name: float(value) for name, value in metrics.items() if value is not None}
        for name, value in numbers.items():
            if not math.isfinite(value):
                _log.warning("step %d: %s is %s", step, name, value)
        _append(self._metrics, [{"step": step, **metrics}])
        if self._publish is not None:
            self._publish(metrics)
        if self._wandb is not None:
            self._wandb.log({"step": step, **numbers})
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()

    def log_spans(self, step: int, spans: Iterable[Span]) -> None:
        """Append the spans that ended by this step."""
        _append(self._directory / "spans.jsonl", ({"step": step, **asdict(span)} for span in spans))

    def write_rollouts(self, step: int, groups: Sequence[Group]) -> Path:
        """Write every completion of a step with its rewards and advantage; returns the file."""
        path = self._rollouts / f"step-{step:06d}.jsonl"
        lines = (line for group in groups for line in _rollout_lines(group, self._advantage_std))
        path.write_text("".join(map(_line, lines)))
        return path

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write `summary.json`, whole or not at all; returns its path."""
        path = self._directory / "summary.json"
        partial = path.with_name(".summary.json.partial")
        partial.write_text(json.dumps(_plain(summary), indent=1) + "\n")
        os.replace(partial, path)
        return path

    def close(self) -> None:
        """Write the timeline; let wandb and TensorBoard finish."""
        if (self._directory / "spans.jsonl").exists():
            write_timeline(self._directory)
        if self._wandb is not None:
            self._wandb.finish()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _discard_after(self, step: int) -> None:
        lines = self._metrics.read_text().splitlines(keepends=True) if self._metrics.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        rollouts = [path for path in self._rollouts.glob("step-*.jsonl") if int(path.stem[5:]) > step]
        if len(kept) == len(lines) and not rollouts:
            return
        n = 1 + sum(1 for _ in self._directory.glob("metrics.discarded-*.jsonl"))
        discarded = [line for line in lines if _step_of(line) > step]
        (self._directory / f"metrics.discarded-{n}.jsonl").write_text("".join(discarded))
        partial = self._metrics.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(kept))
        os.replace(partial, self._metrics)
        for path in rollouts:
            path.rename(path.with_name(f"discarded-{n}-{path.name}"))


def _step_of(line: str) -> float:
    """A line's step; infinite for one that was cut short when the run was."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def _rollout_lines(group: Group, advantage_std: bool) -> Iterable[dict[str, Any]]:
    import torch

    from medr1_ray.grpo import group_advantages

    question, completions, rewards = group.prompt.question, group.completions, group.rewards
    advantages = group_advantages(torch.tensor(rewards.total)[None], advantage_std)[0].tolist()
    versions = np.split(completions.versions, np.cumsum(completions.lengths)[:-1])
    for i, text in enumerate(completions.texts):
        yield {
            "prompt_id": group.prompt.id,
            "question_id": question.id,
            "question": question.text,
            "gold": question.gold_letter,
            "completion": text,
            "answer": rewards.answers[i],
            "correct": bool(rewards.correct[i]),
            "well_formed": bool(rewards.well_formed[i]),
            "rewards": dict(zip(rewards.names, rewards.values[i].tolist(), strict=True)),
            "reward": float(rewards.total[i]),
            "advantage": advantages[i],
            "length_tokens": int(completions.lengths[i]),
            "truncated": bool(completions.truncated[i]),
            "version_min": int(versions[i].min()) if versions[i].size else None,
            "version_max": int(versions[i].max()) if versions[i].size else None,
            "modality": question.modality,
            "question_type": question.question_type,
            "image": question.image_path,
        }


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a") as file:
        file.write("".join(map(_line, rows)))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_plain(row), ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """The same in JSON's own types."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _open_wandb(config: Config, mode: Literal["offline", "online"], directory: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"run.wandb={mode} needs the package wandb ({error}); pip install wandb, or run.wandb=off"
        ) from error
    # A resumed run goes on under its id; steps that are done again come after those that they replace.
    id_file = directory / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8])
    run = wandb.init(
        project=config.run.wandb_project,
        name=directory.name,
        id=id_file.read_text(),
        resume="allow",
        dir=directory,
        mode=mode,
        config=config.model_dump(mode="json"),
        settings={"console": "off"},  # or it would record every redrawing of the progress bar
    )
    run.define_metric("*", step_metric="step")
    return run


def _open_tensorboard(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"run.tensorboard=true needs the package tensorboard ({error}); pip install tensorboard, or "
            "run.tensorboard=false"
        ) from error
    return SummaryWriter(log_dir=str(directory / "tensorboard"), purge_step=step + 1)
