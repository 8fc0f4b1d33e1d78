"""The files that a run writes as it goes: metrics, rollouts, spans and the summary; wandb and TensorBoard on request.

    metrics.jsonl                one JSON object per line, `step` first; steps never go down
    metrics.discarded-<n>.jsonl  lines of steps that were repeated because the run was resumed before them
    rollouts/step-000010.jsonl   one JSON object per completion
    recorded/                    groups with all that an update needs (recorded_groups.py)
    spans.jsonl                  one JSON object per phase of an actor; kept in full, steps that were repeated included
    timeline.json                the same as a Chrome trace, written at the end (timeline.py)
    summary.json                 renamed into place

JSON has no NaN: a number that is not finite is written as "NaN", "Infinity" or "-Infinity" (Python's `float` reads
them back), with a warning. null stands for a metric for which there was nothing to measure.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from medr1_ray.base.append_log import NO_ROOM, GrowingFile
from medr1_ray.base.atomic_files import whole_lines, write_text
from medr1_ray.base.json_files import read_rows
from medr1_ray.config import Config, shown_text
from medr1_ray.config.loading import public_settings
from medr1_ray.evaluation.in_training import Evaluation
from medr1_ray.records.metric_names import METRICS
from medr1_ray.records.recorded_groups import RECORDED, write_demonstrations, write_groups
from medr1_ray.records.timeline import SPAN_KEYS, write_timeline
from medr1_ray.types import CompletedPrompt, Group, Span

_log = logging.getLogger(__name__)

_STEP = ("step",)
_ACCURACY = "eval/accuracy"
_METRICS_FILE = "metrics.jsonl"
_OF_STEPS = re.compile(r"step-(\d+)\.(jsonl|safetensors)")


def check_files(directory: Path) -> None:
    """Raise ValueError for a damaged line in what a run has written, which a resumed run reads, at its end at last."""
    read_rows(directory / _METRICS_FILE, _STEP)
    read_rows(directory / "spans.jsonl", SPAN_KEYS)


def read_accuracies(directory: Path) -> dict[int, float]:
    """Return the accuracy of each step that was evaluated. Raises ValueError for a damaged line."""
    return _accuracies(read_rows(directory / _METRICS_FILE, _STEP))


def _accuracies(lines: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    return {line["step"]: float(line[_ACCURACY]) for line in lines if line.get(_ACCURACY) is not None}


class Tracker:
    """Writes the files above into `directory`.

    Args:
        config: the run's settings; `run.wandb` and `run.tensorboard` say where metrics go besides the files.
        directory: `<run>`, created where it is missing.
        step: steps done so far; 0 for a new run. Rollouts of later steps, from before a resume, are moved aside.
        lines: of `metrics.jsonl` when those steps were done; later ones are moved aside. They may be of the same step:
            the evaluations after a checkpoint are done again.
        publish: receives the same metrics as the files.
        say: is told of what cannot be written, for want of room.

    Raises:
        ValueError: a package that the settings ask for is not installed, or a file has a damaged line.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        step: int = 0,
        lines: int = 0,
        publish: Callable[[Mapping[str, float | None]], None] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._directory = directory
        self._publish = publish
        self._say = say
        self._rollouts = directory / "rollouts"
        self._recorded = directory / RECORDED
        self._rollouts.mkdir(parents=True, exist_ok=True)
        self._last_step = step
        self._metrics = GrowingFile(directory / _METRICS_FILE, say)
        self._spans = GrowingFile(directory / "spans.jsonl", say)
        check_files(directory)
        kept = self._discard_after(step, lines)
        self.lines = len(kept)
        """Lines of metrics so far."""
        self.accuracies = _accuracies(kept)
        """Accuracy of the evaluation after each step that has one in the metrics, as a fraction."""
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
                raise ValueError(f"metric {name!r} is not documented in metric_names.METRICS{hint}")
        if step < self._last_step:
            raise ValueError(
                f"metrics of step {step} after those of step {self._last_step}: steps never go down"
            )
        self._last_step = step
        numbers = {name: float(value) for name, value in metrics.items() if value is not None}
        for name, value in numbers.items():
            if not math.isfinite(value):
                _log.warning("step %d: %s is %s", step, name, value)
        self._metrics.append([_line({"step": step, **metrics})])
        self.lines += 1
        self.accuracies.update(_accuracies([{"step": step, **metrics}]))
        if self._publish is not None:
            self._publish(metrics)
        if self._wandb is not None:
            self._wandb.log({"step": step, **numbers})
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()

    def log_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Append the line of an evaluation after this step, which is a point of the accuracy curve."""
        self.log(step, {_ACCURACY: evaluation.accuracy, "eval/format": evaluation.format})

    def log_spans(self, step: int, spans: Iterable[Span]) -> None:
        """Append the spans that ended by this step."""
        self._spans.append([_line({"step": step, **asdict(span)}) for span in spans])

    def write_rollouts(self, step: int, groups: Sequence[Group]) -> Path:
        """Write every completion of a step with its rewards and advantage; returns the file."""
        path = self._rollouts / f"step-{step:06d}.jsonl"
        lines = (line for group in groups for line in _rollout_lines(group))
        with self._where_there_is_room(path):
            write_text(path, "".join(map(_line, lines)))
        return path

    def record_groups(self, step: int, groups: Sequence[Group]) -> None:
        """Write the groups of a step so that an update can be done again from them."""
        with self._where_there_is_room(self._recorded):
            write_groups(self._recorded, step, groups)

    def record_demonstrations(self, step: int, demonstrations: Sequence[CompletedPrompt]) -> None:
        """Write what a supervised step was to imitate."""
        with self._where_there_is_room(self._recorded):
            write_demonstrations(self._recorded, step, demonstrations)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write `summary.json`, whole or not at all; returns its path."""
        path = self._directory / "summary.json"
        write_text(path, json.dumps(_plain(summary), indent=1) + "\n")
        return path

    def close(self) -> None:
        """Write the timeline; let wandb and TensorBoard finish."""
        self._metrics.close()
        self._spans.close()
        # Empty where none of them ever found room.
        if self._spans.path.exists() and self._spans.path.stat().st_size:
            with self._where_there_is_room(self._directory / "timeline.json"):
                write_timeline(self._directory)
        if self._wandb is not None:
            self._wandb.finish()
        if self._tensorboard is not None:
            self._tensorboard.close()

    @contextmanager
    def _where_there_is_room(self, path: Path) -> Iterator[None]:
        """A full disk does not end the run for a file that it can do without."""
        try:
            yield
        # Of safetensors' own, which has no number: it says what the system did.
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) not in NO_ROOM and os.strerror(errno.ENOSPC) not in str(error):
                raise
            self._say(f"NOT WRITTEN: {path}: {os.strerror(errno.ENOSPC)}; the run goes on without it")

    def _discard_after(self, step: int, lines: int) -> list[dict[str, Any]]:
        """Returns what is kept: fewer than these lines where they had found no room when the run was killed."""
        there = [line.decode() for line in whole_lines(self._metrics.path)]
        rows = [json.loads(line) for line in there]
        # By their steps too: somebody may have removed a damaged line before these.
        past = [number >= lines or row["step"] > step for number, row in enumerate(rows)]
        rows_kept = [row for row, is_past in zip(rows, past, strict=True) if not is_past]
        kept = [line for line, is_past in zip(there, past, strict=True) if not is_past]
        discarded = [line for line, is_past in zip(there, past, strict=True) if is_past]
        rollouts = [
            path
            for path in (*self._rollouts.iterdir(), *self._recorded.glob("step-*"))
            if (found := _OF_STEPS.fullmatch(path.name)) and int(found[1]) > step
        ]
        if not discarded and not rollouts:
            return rows_kept
        n = next(n for n in count(1) if not (self._directory / f"metrics.discarded-{n}.jsonl").exists())
        # The copy first: an interruption before the next line loses nothing.
        write_text(self._directory / f"metrics.discarded-{n}.jsonl", "".join(f"{line}\n" for line in discarded))
        write_text(self._metrics.path, "".join(f"{line}\n" for line in kept))
        for path in rollouts:
            path.rename(path.with_name(f"discarded-{n}-{path.name}"))
        return rows_kept


def _rollout_lines(group: Group) -> Iterable[dict[str, Any]]:
    question, completions, rewards = group.prompt.question, group.completions, group.rewards
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
            "advantage": float(group.advantages[i]),
            "length_tokens": int(completions.lengths[i]),
            "truncated": bool(completions.truncated[i]),
            "version_min": int(versions[i].min()) if versions[i].size else None,
            "version_max": int(versions[i].max()) if versions[i].size else None,
            "modality": question.modality,
            "question_type": question.question_type,
            "image": question.image_path,
        }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_plain(row), ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """The same value in JSON's own types."""
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
    # A resumed run continues under its id; repeated steps come after those that they replace.
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
        config=public_settings(config),
        settings={
            "console": "off",  # or it would record every redrawing of the progress bar
            # Among other things the words of the command line.
            "x_disable_meta": any(shown_text(word) != word for word in sys.argv),
        },
    )
    # wandb's own step may never go back, but a resumed run repeats steps.
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
    # purge_step hides the points of steps that a resumed run repeats.
    return SummaryWriter(log_dir=str(directory / "tensorboard"), purge_step=step + 1)
