"""The loop of reinforcement learning over a session that watches the order of things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medr1_ray import train
from medr1_ray.config import Config


class Session:
    """A session whose engines hold a policy version, `-1` before the first sync, and whose learner is at `step`."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.shown = -1
        self.logged: list[tuple[Any, Any]] = []
        self.evaluated: list[int] = []
        self.saved: list[int] = []
        self.scaled = 0
        self.before = self.after = self.stoppable = False

    def sync_weights(self) -> None:
        self.shown = self.step

    def evaluate_before(self) -> None:
        assert self.shown == self.step
        assert not self.logged
        self.before = True

    def take_groups(self) -> list[str]:
        assert self.shown == self.step, "groups come from the learner's own policy"
        return [f"group of version {self.shown}"]

    def update(self, groups: list[str]) -> str:
        self.step += 1
        return f"report of step {self.step}"

    def log_step(self, groups: list[str], report: str) -> None:
        assert self.shown == self.step, "what the log says of weights and spans includes this step's sync"
        self.logged.append((groups, report))

    def scale_rollouts(self) -> None:
        assert len(self.logged) > self.scaled, "the decision needs the step's idle times"
        self.scaled += 1

    def evaluate_if_due(self) -> None:
        assert self.shown == self.step
        self.evaluated.append(self.step)

    def save_if_due(self) -> None:
        assert self.logged[-1][1] == f"report of step {self.step}", "a resumed run does not log the step again"
        self.saved.append(self.step)

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        self.stoppable = True
        yield
        self.stoppable = False

    def stop_if_asked(self) -> None:
        assert self.stoppable
        assert self.saved[-1] == self.step

    def save(self) -> None:
        assert self.stoppable, "a signal in the last save must not undo it"
        self.saved.append(self.step)

    def evaluate_after(self) -> None:
        assert self.shown == self.step == self.saved[-1], "what is evaluated is on disk, whatever happens"
        self.after = True

    def summarise(self) -> Path:
        assert self.after
        return Path("summary.json")


@pytest.mark.parametrize(("first", "resume"), [(0, False), (2, True)])
def test_every_step_uses_logs_and_saves_the_weights_of_its_version(
    monkeypatch: pytest.MonkeyPatch, first: int, resume: bool
) -> None:
    session, engines = Session(first), object()
    opened: list[Any] = []

    @contextmanager
    def open_session(config: Config, **settings: Any) -> Iterator[Session]:
        opened.append(settings)
        yield session
        opened.append("closed")

    monkeypatch.setattr(train, "open_session", open_session)
    config = Config.model_validate(
        {"run": {"dir": "x"}, "data": {"format": "phantoms", "root": "x"}, "train": {"steps": 4}}
    )
    assert train.train(config, resume=resume, engines=engines) == Path("summary.json")  # type: ignore[arg-type]
    assert opened == [{"resume": resume, "engines": engines}, "closed"]
    assert session.before
    steps = list(range(first, 4))
    assert session.logged == [([f"group of version {step}"], f"report of step {step + 1}") for step in steps]
    assert session.evaluated == [step + 1 for step in steps]
    assert session.saved == [*(step + 1 for step in steps), 4]
    assert session.scaled == len(steps)
