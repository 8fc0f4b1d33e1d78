"""One mode measured: a session of `medr1_ray.train`'s own loop for a few steps, and the memory that its actors took."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from benchmarks.helpers.cluster.memory import peak_of_engine, peak_of_rank
from benchmarks.helpers.cluster.modes import Mode
from benchmarks.helpers.cluster.report import Estimate, Row, estimate, first_line
from benchmarks.helpers.cluster.settings import WARM_UP, Plan
from benchmarks.helpers.common import progress
from benchmarks.helpers.kept_engines import KeptEngines
from benchmarks.helpers.sides.session_steps import OurSteps
from medr1_ray.base.json_files import read_rows
from medr1_ray.config import Config
from medr1_ray.model.shape import ModelShape
from medr1_ray.run.opening import open_session

if TYPE_CHECKING:
    from medr1_ray.pool.shared_actors import SharedActors

_ANSWER_SECONDS = 60.0


def measure(plan: Plan, mode: Mode, shape: ModelShape, kept: KeptEngines) -> Row:
    """Return what a mode's steps took, or why it failed; `kept` has no engines afterwards where it failed."""
    expected: Estimate | None = None
    try:
        config = plan.config_of(mode)
        expected = estimate(config, shape)
        started = time.monotonic()
        metrics, peaks = _steps(config, kept.engines(config, plan.out / "engines"), plan.timed, started)
    except Exception as error:
        # The others go on, but not with these engines, which may be busy with the failed run's requests.
        kept.end()
        folder = plan.out / "modes" / mode.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.log").write_text("".join(traceback.format_exception(error)))
        progress(f"failed: {first_line(error)} (more in {folder})")
        return Row(mode, expected, failed=first_line(error))
    return Row(mode, expected, metrics, peaks)


def _steps(
    config: Config, engines: SharedActors | None, timed: int, started: float
) -> tuple[dict[str, float], dict[str, int | None]]:
    """Return the medians of the timed steps' metrics, and the bytes that a rank and an engine took at most."""
    with open_session(config, resume=False, engines=engines) as session:
        # Engines serve nothing before their first weights.
        session.sync_weights()
        startup = time.monotonic() - started
        steps = OurSteps(session)
        for _ in range(WARM_UP + config.train.max_staleness + timed):
            steps.take()
        peaks = {
            "rank": _largest([name for name, _ in session.learner.nodes()], peak_of_rank),
            # On a shared card the engine's part cannot be told from the learner's.
            "engine": None if config.cluster.colocated else _largest(session.pool.rollout_names, peak_of_engine),
        }
        gap = session.totals.gap.mean
    lines = read_rows(config.run.dir / "metrics.jsonl")[-timed:]
    known = {name: [line[name] for line in lines if line[name] is not None] for name in lines[0]}
    metrics = {name: float(statistics.median(values)) for name, values in known.items() if values}
    return {**metrics, "startup_seconds": startup, "logprob_gap_mean": gap}, peaks


def _largest(names: Sequence[str], peak: Any) -> int | None:
    asked = [ray.get_actor(name).__ray_call__.remote(peak) for name in names]
    known = [found for found in ray.get(asked, timeout=_ANSWER_SECONDS) if found is not None]
    return max(known, default=None)
