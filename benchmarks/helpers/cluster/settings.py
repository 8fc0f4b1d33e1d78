"""The settings of the runs: the user's, made questions and a made model in place of his own, and what a mode adds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.helpers.cluster.modes import Mode, is_fixed
from medr1_ray.config import Config, require_lasting
from medr1_ray.config.loading import load_config

ROOT = Path(__file__).resolve().parents[3]
FOLDER = "runs/cluster"
FULL_SIZE = ROOT / "configs" / "bases" / "medr1_2b.yaml"
WARM_UP = 2
"""Steps that are not timed: kernels are compiled in the first, and the parity gate runs after it."""


@dataclass(frozen=True)
class Plan:
    """What all modes have in common.

    `shape` is the folder with the config.json that a model is made from; None where the user gives a model.
    `makes_data` says whether questions are made. `fixed` are the keys that the user gave for all modes, `timed` the
    steps measured.
    """

    files: tuple[Path, ...]
    overrides: tuple[str, ...]
    config: Config
    fixed: frozenset[str]
    shape: Path | None
    makes_data: bool
    timed: int

    @property
    def out(self) -> Path:
        return self.config.run.dir

    def config_of(self, mode: Mode) -> Config:
        """Return the settings of a mode's run. Raises ValueError where the mode contradicts the others."""
        steps = (WARM_UP + mode.max_staleness + self.timed) * self.config.train.steps_per_rollout
        own = [*mode.settings, f"train.steps={steps}", f"run.dir={_text(self.out / 'modes' / mode.folder)}"]
        return load_config(self.files, [*self.overrides, *own])


def make_plan(files: Sequence[Path], given: Sequence[str], gpus: int, timed: int) -> Plan:
    """Return the plan for `--config` files and overrides; without files Med-R1's 2B run, with a larger step.

    Raises:
        ValueError: the settings are not valid, or `run.dir` would be lost with a Ray job's copy of the code.
    """
    fixed = frozenset(override.partition("=")[0].strip() for override in given)
    # Not the files' run.dir, which is that of a training.
    base = [f"run.dir={FOLDER}"]
    if not files:
        files = [FULL_SIZE]
        base += [f"train.prompts_per_step={max(32, 4 * gpus)}", "train.group_size=8"]
    # Read once as they are, for what the made parts depend on, and for errors in terms of what was given.
    theirs = load_config(files, [*base, *given])
    require_lasting("run.dir", theirs.run.dir)
    out = theirs.run.dir.absolute()
    makes_model = not is_fixed("model.path", fixed)
    makes_data = not (is_fixed("data.root", fixed) or is_fixed("data.format", fixed))
    ours = [*base, *_ALWAYS, f"run.dir={_text(out)}", f"train.steps={timed * theirs.train.steps_per_rollout}"]
    shape = None
    if makes_model:
        shape = (theirs.model.shape or theirs.model.folder).absolute()
        ours += [f"model.path={_text(out / 'model')}", f"model.shape={_text(shape)}"]
        # Far below the gap of other weights (about 1), and above what bfloat16 may make of untrained ones.
        ours.append("parity.gap_mean_limit=0.1")
    if makes_data:
        data = {"format": "omnimedvqa", "root": str(out / "data"), "eval_questions": 16, "eval_fraction": 0.1}
        data |= {"image_size": theirs.data.image_size, "image_fit": theirs.data.image_fit}
        # Cleared first, since filters and weights name what is in the user's data.
        ours += ["data={}", f"data={json.dumps(data)}"]
    own = [override for override in given if override.partition("=")[0].strip() != "run.dir"]
    overrides = (*ours, *own)
    return Plan(tuple(files), overrides, load_config(files, overrides), fixed, shape, makes_data, timed)


_ALWAYS = (
    # Nothing is kept of a training: no checkpoints, no uploads, no rollouts.
    "run={}",
    "run={save_minutes: 0, rollouts_every: 0, keep_checkpoints: 1}",
    "learner.warmup_steps=0",
    # Answers of random weights are all wrong, and groups of equal rewards would skip the learner.
    "reward.functions={benchmarks.helpers.rewards:coin: 1.0}",
)


def _text(path: Path) -> str:
    """Return a path as a value in YAML."""
    return json.dumps(str(path))
