"""The command of a cluster's benchmark, as far as it goes without engines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cluster
from benchmarks.helpers.cluster import measuring
from benchmarks.helpers.cluster.memory import _peak, peak_of_engine, peak_of_rank
from benchmarks.helpers.cluster.modes import Mode, modes
from benchmarks.helpers.cluster.report import Row
from benchmarks.helpers.cluster.settings import make_plan
from medr1_ray.config import tiny_model_path
from medr1_ray.model.shape import read_shape
from tests.repository import REPOSITORY

TINY = REPOSITORY / "configs" / "phantom_cpu.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Kept:
    """Stands for the kept engines; counts how often they are ended."""

    def __init__(self) -> None:
        self.ended = 0

    def engines(self, *_: Any) -> None:
        return None

    def end(self) -> None:
        self.ended += 1


def test_a_dry_run_prints_the_modes_with_estimates_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main(["--dry-run", "--gpus", "2", f"run.dir={tmp_path / 'out'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "1 rank, 1 engine, nccl, sync",
        "1 rank, 1 engine, nccl, async",
        "1 rank, 1 engine, object_store, sync",
        "1 rank, 1 engine, object_store, async",
        "2 ranks, 2 engines on the same GPUs, ipc, sync",
    ]
    assert not (tmp_path / "out").exists()


def test_a_mode_that_contradicts_the_settings_is_said_in_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster.main(["--dry-run", "--gpus", "8", "train.prompts_per_step=4", "--only", "7 ranks"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("not possible: 7 ranks, 1 engine, nccl, sync: the configuration is not valid: ")
    assert "train.prompts_per_step=4 is less than learner.world_size=7" in said[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0"], "no mode is possible on 0 GPUs with learner.gpus_per_rank=1"),
        (["--gpus", "-1"], "--gpus -1: give a whole number from 0 on"),
        (["--gpus", "2", "--steps", "0"], "--steps 0: give a whole number from 1 on"),
        (["--gpus", "2", "--only", "nvlink"], "--only 'nvlink': no mode has this in its name; there are ['1 rank, 1 "),
        (["--config", str(TINY), "rollout.actor=2"], "the configuration is not valid: rollout.actor is not a setting"),
        (["--config", "/nope.yaml"], "the configuration file /nope.yaml does not exist"),
        (["--config", str(TINY), "cluster.address=127.0.0.1:1"], "cluster.address='127.0.0.1:1' does not answer"),
        (["--config", str(TINY), "run.dir=/dev/null/x"], "run.dir='/dev/null/x' cannot be made"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_failed_mode_is_a_row_with_its_reason_and_ends_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan([TINY], [f"run.dir={tmp_path}", "rollout.actors=1"], 0, 3)
    first, second = modes(0, plan.config, plan.fixed)
    shape, kept = read_shape(tiny_model_path()), Kept()

    def steps(config: Any, *_: Any) -> Any:
        if config.train.max_staleness == 0:
            raise RuntimeError("CUDA out of memory\nmore of it")
        return {"perf/rollout_tokens_per_second": 5.0, "time/step_seconds": 1.0}, {}

    monkeypatch.setattr(measuring, "_steps", steps)
    rows = [measuring.measure(plan, mode, shape, kept) for mode in (first, second)]  # type: ignore[arg-type]
    assert [row.failed for row in rows] == ["CUDA out of memory", None]
    assert [row.tokens_per_second for row in rows] == [0.0, 5.0]
    assert rows[0].estimate == rows[1].estimate is not None
    assert kept.ended == 1
    assert "more of it" in (tmp_path / "modes" / first.folder / "failure.log").read_text()


def test_ctrl_c_is_no_failure_of_a_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan([TINY], [f"run.dir={tmp_path}"], 0, 3)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "_steps", stop)
    mode = modes(0, plan.config, plan.fixed)[0]
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(plan, mode, read_shape(tiny_model_path()), Kept())  # type: ignore[arg-type]


def test_the_report_holds_what_is_measured_so_far(tmp_path: Path) -> None:
    plan = make_plan([TINY], [f"run.dir={tmp_path}"], 0, 3)
    cluster.write_report(plan, [Row(Mode(1, 1, "nccl", 0, ()), failed="no NCCL")], {"gpus": 2, "nodes": []})
    report = json.loads((tmp_path / cluster.REPORT).read_text())
    assert report["modes"][0]["failed"] == "no NCCL"
    assert report["bottleneck"].endswith("failed with: no NCCL")
    assert (report["timed_steps"], report["cluster"]["gpus"]) == (3, 2)
    assert report["settings"]["rollout"]["actors"] == plan.config.rollout.actors


def test_peaks_are_of_the_process_without_gpus_and_of_the_fullest_gpu_with_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import psutil
    import ray

    resident = psutil.Process().memory_info().rss
    assert peak_of_rank(None) >= 0.9 * resident
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    assert (peak_of_engine(None) or 0) >= 0.9 * resident
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(stdout="70000\n71000\n")

    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [2, 3])
    monkeypatch.setattr("subprocess.run", answer)
    assert peak_of_engine(None) == 71000 * 2**20
    assert asked[0][:2] == ["nvidia-smi", "--id=2,3"]

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr("subprocess.run", missing)
    assert peak_of_engine(None) is None


def test_what_processes_share_is_counted_once_and_the_object_store_not_at_all(tmp_path: Path) -> None:
    told = {"actor": (900, 250, 12), "engine": (1800, 240, 30)}
    for name, (peak, of_files, shared) in told.items():
        (tmp_path / name).mkdir()
        lines = [f"Name:\t{name}", f"VmHWM:\t  {peak} kB", f"RssFile:\t  {of_files} kB", f"RssShmem:\t  {shared} kB"]
        (tmp_path / name / "status").write_text("\n".join([*lines, "Threads:\t3", "Cpus_allowed_list:\t0-1"]))
    assert _peak(tmp_path / "actor") == 888 * 1024
    assert _peak(tmp_path / "actor", tmp_path / "engine") == (638 + 1530 + 250) * 1024
