"""The whole loop: real engines, real DeepSpeed, a real cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.cluster.ports import free_port
from medr1_ray.records.busy_time import BusyTime, seconds_of
from medr1_ray.types import Span
from tests.faults.processes import PATIENCE, end
from tests.repository import REPOSITORY

SMALL = [
    "data.phantom_images=120",
    "data.eval_questions=40",
    "train.prompts_per_step=8",
    "train.group_size=4",
    "run.rollouts_every=1",
]
SUMMARY_KEYS = {
    "steps",
    "mode",
    "eval",
    "completions_per_second",
    "seconds",
    "logprob_gap_mean",
    "logprob_gap_max",
    "groups_issued",
    "groups_used",
    "groups_zero_variance",
    "groups_dropped",
}


def _train(config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, on a local cluster of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "medr1_ray.train", "--config", f"configs/{config}", *SMALL, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def asynchronous_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three asynchronous steps of two engines, whose last checkpoint is then damaged; after a resume with one, five in
    all."""
    folder = tmp_path_factory.mktemp("async")
    run = folder / "run"
    paths = [f"run.dir={run}", f"data.root={folder / 'phantoms'}", "train.max_staleness=2", "run.save_every=2"]
    paths.append(f"run.storage=file://{folder / 'storage'}")
    first = _train("phantom_cpu.yaml", *paths, "train.steps=3")
    assert first.returncode == 0, first.stdout + first.stderr
    shutil.copyfile(run / "summary.json", folder / "first_summary.json")
    (folder / "first_output.txt").write_text(first.stdout)
    weights = run / "checkpoints/checkpoint-3/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = ["train.steps=5", "learner.zero_stage=2", "rollout.actors=1"]
    second = _train("phantom_cpu.yaml", *paths, *changed, "run.resume=auto")
    assert second.returncode == 0, second.stdout + second.stderr
    (folder / "second_output.txt").write_text(second.stdout)
    return folder


def test_of_a_damaged_checkpoint_the_one_before_is_taken(asynchronous_run: Path) -> None:
    output = (asynchronous_run / "second_output.txt").read_text()
    damaged = "checkpoint-3 is damaged and is not used: model.safetensors has other bytes than were written"
    assert damaged in " ".join(output.split())
    again = _lines(asynchronous_run / "run" / "metrics.discarded-1.jsonl")
    assert {line["step"] for line in again} == {3}, "the third step is done again"


def test_a_run_whose_directory_is_lost_goes_on_from_its_storage(asynchronous_run: Path) -> None:
    folder, fresh = asynchronous_run, asynchronous_run / "fresh"
    paths = [f"run.dir={fresh}", f"data.root={folder / 'phantoms'}", f"run.storage=file://{folder / 'storage'}"]
    changed = ["train.steps=6", "rollout.actors=1"]
    done = _train("phantom_cpu.yaml", *paths, "train.max_staleness=2", *changed, "run.resume=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"bringing checkpoint-5 from run.storage='file://{folder / 'storage'}'" in done.stdout
    assert "resuming after step 5 of 6" in done.stdout
    assert "evaluation before" not in done.stdout, "it was evaluated before it was lost"
    steps = [line["step"] for line in _lines(fresh / "metrics.jsonl") if "reward/total_mean" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert json.loads((fresh / "summary.json").read_text())["groups_used"] == 6 * 8
    stored = {path.name for path in (folder / "storage" / "checkpoints").iterdir()}
    assert stored == {"checkpoint-5", "checkpoint-6", "latest"}


def test_a_summary_says_what_came_of_a_run(asynchronous_run: Path) -> None:
    summary = json.loads((asynchronous_run / "first_summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["steps"], summary["mode"]) == (3, "no_think")
    for name in ("before", "after"):
        evaluation = summary["eval"][name]
        assert evaluation["n"] == 40
        assert len(evaluation["by_modality"]) == 8
        assert len(evaluation["by_question_type"]) == 5
    assert summary["groups_used"] == 3 * 8
    assert summary["seconds"].keys() >= {"total", "rollout", "update", "weight_sync", "evaluation"}
    assert 0 < summary["logprob_gap_mean"] < 1e-3


def test_a_run_says_what_it_starts_and_when_it_is_up(asynchronous_run: Path) -> None:
    output = (asynchronous_run / "first_output.txt").read_text()
    lines = [
        "starting 1 learner rank, 2 rollout actors, 1 reward actor",
        r"Ray is up after \d+ s; learner and engines load the model",
        r"the learner is up after \d+ s; waiting for the engines",
        r"up after \d+ s",
        r"first weight sync, then the parity gate: do engines and learner compute the same\?",
        r"parity gate: they differ by \d\.\de-\d\d nats in the mean over \d+ tokens",
        "evaluation before: ",
    ]
    # In this order; where something takes long, lines in between say so.
    assert re.search("^" + r"\n(?:.*\n)*?".join(lines), output, re.MULTILINE), output


def test_a_resumed_run_goes_on_with_the_prompts_that_were_issued_and_not_used(asynchronous_run: Path) -> None:
    run = asynchronous_run / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 5
    assert summary["groups_used"] == 5 * 8
    used = [
        line["prompt_id"] for step in range(1, 6) for line in _lines(run / f"rollouts/step-{step:06d}.jsonl")
    ]
    positions = sorted({int(prompt_id.partition(":")[0].partition(".")[2]) for prompt_id in used})
    dropped = summary["groups_dropped"]
    assert len(positions) == 40, "no prompt was used twice"
    assert positions[-1] < 40 + dropped + 2 * 8, "no prompt was skipped but those in flight at the end"
    first_steps = {
        line["prompt_id"] for step in (1, 2, 3) for line in _lines(run / f"rollouts/step-{step:06d}.jsonl")
    }
    state_steps = [line["step"] for line in _lines(run / "metrics.jsonl") if "reward/total_mean" in line]
    assert state_steps == [1, 2, 3, 4, 5]
    assert len(first_steps) == 24


def test_asynchronous_staleness_is_bounded_and_seen(asynchronous_run: Path) -> None:
    steps = [line for line in _lines(asynchronous_run / "run/metrics.jsonl") if "staleness/max" in line]
    assert max(line["staleness/max"] for line in steps) <= 2
    assert any(line["staleness/mean"] > 0 for line in steps)


def test_every_phase_of_every_actor_is_a_span(asynchronous_run: Path) -> None:
    spans = _lines(asynchronous_run / "run/spans.jsonl")
    assert {span["actor"] for span in spans} == {"driver", "learner-0", "reward-0", "rollout-0", "rollout-1"}
    assert all(span["end_seconds"] >= span["start_seconds"] for span in spans)


def test_a_run_tells_how_idle_it_was_and_leaves_a_timeline(asynchronous_run: Path) -> None:
    run = asynchronous_run / "run"
    steps = [line for line in _lines(run / "metrics.jsonl") if "time/step_seconds" in line]
    spans = _lines(run / "spans.jsonl")
    # Engines that are ahead have a step's groups before it begins, or while an evaluation is awaited, which is no time
    # of a step: on a busy machine they and the rewards may have been idle in any step. So it is what the spans tell.
    # Of the first two steps, since those of the third are of two processes, and the last has what came after it.
    busy_time = BusyTime()
    for step, line in zip((1, 2), steps, strict=False):
        busy = busy_time.add(
            Span(span["actor"], span["phase"], span["start_seconds"], span["end_seconds"])
            for span in spans
            if span["step"] == step
        )
        for role, actors in (("learner", 1), ("rollout", 2), ("reward", 1)):
            idle = max(0.0, 1 - seconds_of(busy, f"{role}-") / (actors * line["time/step_seconds"]))
            assert line[f"perf/{role}_idle_fraction"] == pytest.approx(idle, abs=1e-3), (role, step)
    assert all(0 <= line["perf/learner_idle_fraction"] < 1 for line in steps), "it updates in every step"
    assert all(line["perf/cost_per_1000_groups"] is None for line in steps), "no prices were given"
    events = json.loads((run / "timeline.json").read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {
        span["actor"] for span in spans
    }
    assert {event["args"]["step"] for event in events if event["ph"] == "X"} == {1, 2, 3, 4, 5}


def test_the_checkpoint_loads_in_transformers(asynchronous_run: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    checkpoint = asynchronous_run / "run/checkpoints/checkpoint-5"
    AutoProcessor.from_pretrained(checkpoint)
    assert AutoModelForImageTextToText.from_pretrained(checkpoint).num_parameters() > 1e6


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray head of two CPUs with token authentication; yields the environment of a client that has the token."""
    dashboard = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a" * 64,
    }
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    # Two heads on one machine fight for the agent's fixed default port: the loser answers, but takes no job. Nor may
    # their workers take each other's.
    command += [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
    # A job's driver joins the cluster that this folder names: the default one names whichever started last. Its path is
    # short, since those of sockets are limited.
    own = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    command += [f"--temp-dir={own.name}"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
    try:
        client = {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        # The head answers before its job agent can take a job; only a job tells.
        trial = ["ray", "job", "submit", "--no-wait", "--", "true"]
        deadline = time.monotonic() + PATIENCE
        while (last := subprocess.run(trial, env=client, capture_output=True, text=True)).returncode:
            assert process.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < deadline, f"the head took no job: {last.stdout}{last.stderr}"
            time.sleep(1)
        yield client
    finally:
        end(process)
        own.cleanup()


def test_a_changed_copy_of_the_code_is_a_job_that_can_be_stopped_and_resumed(
    head: dict[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for folder in ("medr1_ray", "configs"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / "medr1_ray" / "data" / "prompt_templates.py"
    changed.write_text(changed.read_text().replace("Your task: ", "Your duty: "))
    run = tmp_path / "run"
    submit = ["ray", "job", "submit", "--working-dir", str(copy)]
    training = ["--", "python", "-m", "medr1_ray.train", "--config", "configs/phantom_cpu.yaml", *SMALL]
    training += ["run.save_every=1", f"run.dir={run}", f"data.root={tmp_path / 'phantoms'}"]

    def ray(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**head, **environment}, capture_output=True, text=True, timeout=PATIENCE
        )

    unknown = ray(*submit, *training, "train.steps=3", RAY_AUTH_TOKEN="b" * 64)
    assert unknown.returncode != 0, "a wrong token must be refused"

    patient = ["--runtime-env-json", json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "100"}})]
    begun = ray(*submit, *patient, "--no-wait", "--submission-id=first", *training, "train.steps=10000")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    latest = run / "checkpoints" / "latest"
    deadline = time.monotonic() + PATIENCE
    while not latest.exists():
        status = ray("ray", "job", "status", "first")
        ended = re.search(r"Job 'first' (failed|succeeded|was stopped)", status.stdout)
        assert not ended, status.stdout + ray("ray", "job", "logs", "first").stdout
        assert time.monotonic() < deadline, status.stdout
        time.sleep(1)
    stopped = ray("ray", "job", "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    logs = ray("ray", "job", "logs", "first").stdout
    assert re.search(r"stopped by SIGTERM: \S+/checkpoint-\d+ is saved; go on with", logs), logs
    assert "`ray job stop` kills" not in logs

    steps = int(latest.read_text().strip().rpartition("-")[2]) + 2
    done = ray(*submit, *training, f"train.steps={steps}", "rollout.actors=1", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "`ray job stop` kills this job 3 s after" in done.stdout, "it was submitted without more"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == steps
    assert summary["groups_used"] == steps * 8, "the resumed run goes on where the stopped one was saved"
    digest = subprocess.run(
        [sys.executable, "-c", "from medr1_ray.base.code_digest import code_digest; print(code_digest())"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert summary["code_digest"] == digest, "the submitted code ran, not the installed one"
