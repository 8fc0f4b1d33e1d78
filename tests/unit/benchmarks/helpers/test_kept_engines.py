"""Which runs of a process have the same engines; real ones are in tests/integration/commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.helpers.kept_engines import KeptEngines
from medr1_ray.config import Config
from medr1_ray.pool import shared_actors
from tests.unit.pool.world import a_config


class Engines:
    """Fit runs of as many actors as they have."""

    def __init__(self, config: Config) -> None:
        self.logs = config.run.dir
        self.actors = config.rollout.actors
        self.ended = False

    def require_fit(self, config: Config) -> None:
        if config.rollout.actors != self.actors:
            raise ValueError("rollout.actors is another")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptEngines:
    @contextmanager
    def opened(config: Config) -> Iterator[Any]:
        engines = Engines(config)
        yield engines
        engines.ended = True

    monkeypatch.setattr(shared_actors, "open_engines", opened)
    return KeptEngines()


def test_runs_that_fit_have_the_same_engines_and_others_new_ones_with_logs_of_their_own(
    kept: KeptEngines, tmp_path: Path
) -> None:
    two: Any = kept.engines(a_config(actors=2), tmp_path)
    assert kept.engines(a_config(actors=2), tmp_path) is two
    one: Any = kept.engines(a_config(actors=1), tmp_path)
    assert (two.actors, two.ended, one.actors, one.ended) == (2, True, 1, False)
    assert two.logs != one.logs
    assert two.logs.parent == one.logs.parent == tmp_path


def test_after_a_failure_nothing_is_kept(kept: KeptEngines, tmp_path: Path) -> None:
    failed: Any = kept.engines(a_config(actors=1), tmp_path)
    kept.end()
    assert failed.ended
    assert kept.engines(a_config(actors=1), tmp_path) is not failed


def test_engines_on_the_ranks_gpus_are_the_runs_own(kept: KeptEngines, tmp_path: Path) -> None:
    before: Any = kept.engines(a_config(actors=1), tmp_path)
    config = a_config(actors=1)
    shared = config.model_copy(update={"cluster": config.cluster.model_copy(update={"colocated": True})})
    assert kept.engines(shared, tmp_path) is None
    assert before.ended, "which would be in their way"
