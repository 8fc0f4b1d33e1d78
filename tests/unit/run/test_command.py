"""The command line of a training: what runs, what is only printed, and what is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from medr1_ray.config import Config, Objective, tiny_model_path
from medr1_ray.config.loading import load_config, write_config
from medr1_ray.data.stream import StreamState
from medr1_ray.records.checkpoints import Checkpoints, RunState
from medr1_ray.records.summary import Totals
from medr1_ray.run import command as module
from medr1_ray.run.command import run_command
from medr1_ray.run.start_checks import check_start
from tests.faults.storage import publish


class Runs:
    """Stands in for a training: what it was given; raises `error` if there is one."""

    def __init__(self) -> None:
        self.given: list[tuple[Config, bool]] = []
        self.error: Exception | None = None

    def __call__(self, config: Config, *, resume: bool) -> Path:
        self.given.append((config, resume))
        if self.error:
            raise self.error
        return Path("summary.json")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.yaml"
    path.write_text(
        f"run: {{dir: {tmp_path}}}\ndata: {{format: phantoms, root: x}}\n"
        "train: {steps: 4}\nlearner: {learning_rate: 1e-3}\n"
    )
    return str(path)


def run(objective: Objective, runs: Runs, *arguments: str) -> int:
    return run_command(objective, "", runs, list(arguments))


def test_settings_come_from_the_files_in_their_order_and_then_from_the_overrides(file: str, tmp_path: Path) -> None:
    later = tmp_path / "b.yaml"
    later.write_text("train: {steps: 5, seed: 7}")
    runs = Runs()
    given = ["--config", file, "train.seed=8", "--config", str(later)]
    saved(tmp_path, step=2, given=given)
    assert run("grpo", runs, *given, "--resume") == 0
    ((config, resume),) = runs.given
    assert (config.train.steps, config.train.seed, config.learner.learning_rate, resume) == (5, 8, 1e-3, True)
    run("grpo", runs, "--config", file)
    assert runs.given[1][1] is False


@pytest.mark.parametrize("given", [["run.resume=auto"], ["run.resume=auto", "--resume"]])
def test_one_command_starts_or_goes_on(file: str, tmp_path: Path, given: list[str]) -> None:
    runs = Runs()
    if "--resume" not in given:
        assert run("grpo", runs, "--config", file, *given) == 0
    saved(tmp_path, step=2, given=["--config", file])
    assert run("grpo", runs, "--config", file, *given) == 0
    assert [resume for _, resume in runs.given] == [*[False] * ("--resume" not in given), True]


def test_a_damaged_checkpoint_does_not_end_the_command_before_an_older_one_is_looked_for(
    file: str, tmp_path: Path
) -> None:
    saved(tmp_path, step=4, given=["--config", file])
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "checkpoints" / "checkpoint-4" / "state.json").write_text("")
    runs = Runs()
    assert run("grpo", runs, "--config", file, "--resume") == 0
    assert len(runs.given) == 1


def saved(directory: Path, step: int, given: list[str]) -> None:
    """Leave what a run of these arguments leaves that was stopped after a step."""
    overrides = [word for word in given if "=" in word]
    files = [Path(word) for word in given if word.endswith(".yaml")]
    write_config(load_config(files, overrides), directory / "config.yaml")
    state = RunState(step, StreamState(0, "d"), (), 0, 0, {}, 0, 0, Totals(), "c", 0, 0)
    publish(Checkpoints(directory / "checkpoints", keep=2), state, lambda folder: [])


def test_a_dry_run_prints_and_starts_nothing(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "dry_run", lambda config: f"would take {config.train.steps} steps")
    runs = Runs()
    assert run("grpo", runs, "--config", file, "--dry-run") == 0
    assert capsys.readouterr().out == "would take 4 steps\n"
    assert runs.given == []


def test_a_dry_run_names_what_a_start_would_fail_of(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "dry_run", lambda config: "the report")
    saved(tmp_path, step=2, given=["--config", file])
    wrong = ["reward.functions.acuracy=1", "data.modalities=[Xray]", "rollout.max_tokens=2"]
    assert run("grpo", Runs(), "--config", file, *wrong, "--dry-run") == 1
    said = capsys.readouterr()
    assert said.out == "the report\n"
    lines = said.err.splitlines()
    assert all(line.startswith("error: a start would fail: ") for line in lines)
    for word, line in zip(("acuracy", "holds a run already", "rollout.max_tokens=2", "'Xray'"), lines, strict=True):
        assert word in line


def test_a_finished_run_has_nothing_left_to_do(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, step=4, given=["--config", file])
    runs = Runs()
    assert run("grpo", runs, "--config", file, "--resume") == 0
    assert len(runs.given) == 1, "the last evaluation may be missing"
    # Of a run that had fewer steps when it ended first, or cut off.
    for text in ('{"steps": 2}', '{"ste'):
        (tmp_path / "summary.json").write_text(text)
        assert run("grpo", runs, "--config", file, "--resume") == 0
        assert len(runs.given) == 2, text
        runs.given.pop()
    (tmp_path / "summary.json").write_text('{"steps": 4}')
    assert run("grpo", runs, "--config", file, "--resume") == 0
    assert len(runs.given) == 1
    assert "nothing left to do: 4 of train.steps=4 steps are done, see " in capsys.readouterr().out
    assert run("grpo", runs, "--config", file, "train.steps=6", "--resume") == 0
    assert len(runs.given) == 2


def test_a_stopped_run_says_how_to_go_on(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Stopped(Runs):
        def __call__(self, config: Config, *, resume: bool) -> Path:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it is stopped before")

    given = ["--config", file, "train.seed=1"]
    assert run("grpo", Stopped(), *given) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM: nothing was saved; the same command starts again\n"
    saved(tmp_path, step=3, given=given)
    assert run("grpo", Stopped(), *given, "--resume") == 143
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"stopped by SIGTERM: {tmp_path}/checkpoints/checkpoint-3 is saved; go on with"
    assert second.endswith(f"python -m medr1_ray.train --config {file} train.seed=1 --resume")


def test_a_dry_run_needs_a_model_that_can_be_used(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs()
    assert run("grpo", runs, "--config", file, "model.path=Qwen/Qwen2-VL-2B-Instruct", "--dry-run") == 1
    assert run("sft", runs, "--config", file, "data.image_size=1024", "--dry-run") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: model.path: 'Qwen/Qwen2-VL-2B-Instruct' is not a folder here")
    assert second.startswith("error: data.image_size=1024: the image processor of")
    assert runs.given == []


def test_a_dry_run_needs_no_checkpoint_where_a_shape_is_given(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dry_run", lambda config: "a report")
    shape = [f"model.shape={tiny_model_path()}", "model.path=models/not-here-yet"]
    runs = Runs()
    assert run("grpo", runs, "--config", file, *shape, "--dry-run") == 0
    assert runs.given == []
    with pytest.raises(ValueError, match="'models/not-here-yet' does not exist"):
        check_start(load_config([Path(file)], shape), resume=False)


def test_settings_of_grpo_serve_the_supervised_baseline_and_not_the_other_way_round(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    assert run("sft", runs, "--config", file) == 0
    assert runs.given[0][0].objective == "sft"
    assert run("grpo", runs, "--config", file, "objective=sft") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: objective=sft: these settings are for python -m medr1_ray.sft; run that")
    assert len(runs.given) == 1


@pytest.mark.parametrize("error", [ValueError("no such folder"), RuntimeError("an actor died")])
def test_a_failure_is_one_line_and_an_exit_status(
    file: str, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    runs = Runs()
    runs.error = error
    assert run("grpo", runs, "--config", file) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_is_named_and_its_traceback_is_in_the_runs_logs(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    runs = Runs()
    runs.error = TypeError("a bug")
    assert run("grpo", runs, "--config", file) == 1
    (log,) = (tmp_path / "logs").iterdir()
    assert capsys.readouterr().err == f"error: TypeError: a bug (traceback: {log})\n"
    assert "in __call__" in log.read_text()


def test_a_wrong_setting_is_an_error_and_not_a_traceback(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("grpo", Runs(), "--config", file, "train.stps=3") == 1
    assert "train.stps is not a setting" in capsys.readouterr().err


def test_recorded_groups_are_a_setting_and_generating_alone_another_work(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, generate = Runs(), Runs()

    def command(*arguments: str) -> int:
        return run_command("grpo", "", runs, ["--config", file, *arguments], generate)

    assert command("--replay", str(tmp_path / "recorded")) == 0
    assert runs.given[0][0].run.replay == tmp_path / "recorded"
    assert command("--rollout-only") == 0
    assert (len(runs.given), len(generate.given)) == (1, 1)
    assert capsys.readouterr().out == "the groups are in summary.json\n"
    with pytest.raises(SystemExit):  # there is nothing to generate
        run("sft", runs, "--config", file, "--rollout-only")
