"""A run that loses a learner rank goes on from its last checkpoint, and gives up where that does not help."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from medr1_ray.cluster.resources import NotStartedError
from medr1_ray.config import Config
from medr1_ray.learner.messages import LearnerLostError
from medr1_ray.run import restarts
from medr1_ray.run.restarts import run_with_restarts


@pytest.fixture
def config(tmp_path: Path) -> Config:
    settings = {
        "run": {"dir": tmp_path, "max_restarts": 2},
        "data": {"format": "phantoms", "root": tmp_path},
        "train": {"steps": 4},
    }
    return Config.model_validate(settings)


class Attempts:
    """A training of several attempts: each saves a step, or none, and is then lost or done."""

    def __init__(self, *saves: int | None, done: bool = True) -> None:
        self._saves = list(saves)
        self._done = done
        self.resumed: list[bool] = []

    def __call__(self, config: Config, *, resume: bool) -> Path:
        self.resumed.append(resume)
        step = self._saves.pop(0)
        if step is not None:
            (config.run.dir / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        if not self._saves and self._done:
            return Path("summary.json")
        raise LearnerLostError("learner-1 died while updating from policy version 3")


def test_it_goes_on_from_what_was_saved(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = Attempts(None, 2, 4, None)
    assert run_with_restarts(run, config, resume=False) == Path("summary.json")
    # Lost before the first checkpoint it starts again.
    assert run.resumed == [False, False, True, True]
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("LOST: learner-1 died while updating from policy version 3. The run goes on from the start")
    assert "from checkpoint-2 with new actors (restart 1 of run.max_restarts=2 without progress)" in second
    assert "from checkpoint-4 with new actors (restart 1 of" in third


def test_a_loss_after_a_stop_was_asked_for_starts_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(restarts, "asked_to_stop", lambda: signal.SIGTERM)
    run = Attempts(2, None)
    with pytest.raises(KeyboardInterrupt):
        run_with_restarts(run, config, resume=False)
    assert run.resumed == [False]
    assert "The run was asked to stop and does not start again" in capsys.readouterr().out


def test_without_progress_there_is_an_end(config: Config) -> None:
    run = Attempts(2, None, None, None, done=False)
    with pytest.raises(LearnerLostError, match=r"learner-1 died .*lost after checkpoint-2 for the third time in a row"):
        run_with_restarts(run, config, resume=False)
    assert run.resumed == [False, True, True]


def test_a_start_that_fails_is_another_loss_once_the_run_has_been_up(config: Config) -> None:
    """Of an engine that was killed as it started for the second time."""
    errors: list[RuntimeError] = [LearnerLostError("learner-0 died"), NotStartedError("rollout-0 did not start")]

    def run(config: Config, *, resume: bool) -> Path:
        (config.run.dir / "checkpoints" / "checkpoint-2").mkdir(parents=True, exist_ok=True)
        if errors:
            raise errors.pop(0)
        return Path("summary.json")

    assert run_with_restarts(run, config, resume=False) == Path("summary.json")
    errors.append(NotStartedError("rollout-0 did not start"))
    with pytest.raises(NotStartedError):  # the settings may be wrong
        run_with_restarts(run, config, resume=True)


@pytest.mark.parametrize("error", [ValueError("a setting"), RuntimeError("parity"), KeyboardInterrupt()])
def test_another_error_ends_the_run(config: Config, error: BaseException) -> None:
    calls: list[bool] = []

    def run(config: Config, *, resume: bool) -> Path:
        calls.append(resume)
        raise error

    with pytest.raises(type(error)):
        run_with_restarts(run, config, resume=True)
    assert calls == [True]


def test_no_restart_is_none(config: Config) -> None:
    never = config.model_copy(update={"run": config.run.model_copy(update={"max_restarts": 0})})
    with pytest.raises(LearnerLostError, match="for the first time in a row"):
        run_with_restarts(Attempts(2, done=False), never, resume=False)
