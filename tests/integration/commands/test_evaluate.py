"""A checkpoint evaluated, asked and served: real engines, the commands as a user types them."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from medr1_ray.cluster.ports import free_port
from medr1_ray.config import tiny_model_path
from medr1_ray.data.images import load_image
from medr1_ray.data.pass_rates import read_pass_rates
from medr1_ray.data.phantoms.write import write_dataset
from medr1_ray.data.prompt_templates import user_text
from medr1_ray.types import Question
from tests.faults.processes import PATIENCE, end
from tests.repository import REPOSITORY

QUESTIONS = 16
SMALL = ["data.image_size=84", "rollout.max_tokens=8", "rollout.max_prompt_tokens=400"]
SMALL += ["rollout.engine.kv_cache_memory_bytes=67108864"]


def _command(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", f"medr1_ray.{module}", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def _vllm_server(folder: Path, port: int) -> list[str]:
    """As docs/evaluation.md has it for a CPU."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_model_path())]
    command += ["--served-model-name", "medr1"]
    command += ["--generation-config", "vllm", "--max-model-len", "512", "--port", str(port), "--host", "127.0.0.1"]
    return [*command, "--enforce-eager", "--dtype", "float32"]


def _ray_server(folder: Path, port: int) -> list[str]:
    config = yaml.safe_load((REPOSITORY / "configs" / "serve" / "ray_serve.yaml").read_text())
    config["http_options"]["port"] = port
    (folder / "ray_serve.yaml").write_text(yaml.safe_dump(config))
    return [str(Path(sys.executable).with_name("serve")), "run", str(folder / "ray_serve.yaml")]


@pytest.fixture(scope="module", params=[_vllm_server, _ray_server])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """The shipped checkpoint served; yields what waits for its address."""
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log"
    port = free_port()
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "RAY_ADDRESS": "local"}
    with log.open("w") as output:
        process = subprocess.Popen(
            request.param(folder, port),
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def address() -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5)
            except OSError:
                time.sleep(0.2)
            else:
                return f"http://127.0.0.1:{port}/v1/chat/completions"
        raise AssertionError(log.read_text())

    try:
        yield address
    finally:
        end(process)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """The shipped checkpoint on a few phantoms, in every way; and the command's arguments."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_dataset(folder / "phantoms", 40, 0)
    arguments = ("--model", "tiny", "--data", str(folder / "phantoms"), "--split", "test", "--out", str(folder / "out"))
    arguments += ("--questions", str(QUESTIONS), "--scoring", "letter", "text", "likelihood", "--samples", "3", *SMALL)
    done = _command("evaluate", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", arguments


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_question_is_put_in_every_way(evaluated: tuple[Path, tuple[str, ...]]) -> None:
    out, _ = evaluated
    report = json.loads((out / "report.json").read_text())
    assert report["overall"]["n"] == QUESTIONS
    assert report["overall"]["baselines"].keys() == {
        "chance",
        "blind_prior",
        "blank_image",
        "shuffled_image",
        "shuffled_options",
    }
    assert report["scorings"].keys() == {"text", "likelihood"}
    assert report["verdict"][0].startswith("The model is ")
    names = {"image", "blank_image", "shuffled_image", "shuffled_options", "text", "likelihood", "samples_3"}
    assert {path.stem for path in (out / "answers").glob("*.jsonl")} == names
    ids = [row["id"] for row in _rows(out / "questions.jsonl")]
    for name in names:
        assert sorted(row["id"] for row in _rows(out / "answers" / f"{name}.jsonl")) == sorted(ids)
    rates = read_pass_rates(out / "pass_rates.jsonl")
    assert rates.keys() == set(ids)
    assert {round(3 * rate, 6) for rate in rates.values()} <= {0, 1, 2, 3}


def test_a_finished_evaluation_starts_no_engine(evaluated: tuple[Path, tuple[str, ...]]) -> None:
    out, arguments = evaluated
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    log = (out / "logs" / "rollout-0.log").stat().st_mtime_ns
    again = _command("evaluate", *arguments, "--against", str(out / "report.json"))
    assert again.returncode == 0, again.stderr
    assert (out / "logs" / "rollout-0.log").stat().st_mtime_ns == log
    assert {path for path, content in before.items() if path.read_bytes() != content} == {out / "report.json"}
    against = json.loads((out / "report.json").read_text())["against"]
    assert (against["n"], against["difference"], against["p"]) == (QUESTIONS, 0, 1)
    other = _command("evaluate", *arguments, "rollout.max_tokens=32")
    assert other.returncode == 1
    assert "max_tokens 8, this one has 32" in other.stderr


def test_the_served_checkpoint_answers_as_it_was_evaluated(
    server: Callable[[], str], evaluated: tuple[Path, tuple[str, ...]]
) -> None:
    out, _ = evaluated
    address = server()
    evaluated_as = {row["id"]: row["completion"] for row in _rows(out / "answers" / "image.jsonl")}
    for row in _rows(out / "questions.jsonl")[:4]:
        question = Question(**{**row, "options": tuple(row["options"])})
        png = io.BytesIO()
        Image.fromarray(load_image(question.image_path, 84, "squash")).save(png, "PNG")
        url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": user_text(question, "no_think")},
        ]
        request = {
            "model": "medr1",
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 8,
        }
        with urllib.request.urlopen(
            urllib.request.Request(
                address, json.dumps(request).encode(), {"Content-Type": "application/json"}
            ),
            timeout=PATIENCE,  # Ray Serve takes a request before its engine is up
        ) as reply:
            message = json.loads(reply.read())["choices"][0]["message"]
        assert message["content"] == evaluated_as[question.id]


def test_many_questions_are_answered_from_a_file(evaluated: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    out, _ = evaluated
    rows = _rows(out / "questions.jsonl")[:3]
    evaluated_as = {row["id"]: row["answer"] for row in _rows(out / "answers" / "image.jsonl")}
    with (tmp_path / "questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "options"])
        writer.writerows([row["image_path"], row["stem"], "; ".join(row["options"])] for row in rows)
        writer.writerow(["missing.png", "Which?", "CT; MRI"])
    arguments = ["--image", "/", "--csv", str(tmp_path / "questions.csv"), "--out", str(tmp_path / "answers.csv")]
    done = _command("answer", "--model", "tiny", *arguments, *SMALL, f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert [row["answer"] or None for row in answers[:3]] == [evaluated_as[row["id"]] for row in rows]
    for answer, row in zip(answers, rows, strict=False):
        probabilities = {letter: float(answer[f"p_{letter}"]) for letter in "ABCDEFGH"[: len(row["options"])]}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)
        if answer["answer"]:
            # The greedy answer is the likeliest one, since nothing comes before it.
            assert max(probabilities, key=probabilities.__getitem__) == answer["answer"]
    assert "missing.png" in answers[3]["problem"]
