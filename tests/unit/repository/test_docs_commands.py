"""Every command line in the documents, run as far as possible without a cluster, and the other blocks and paths."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from medr1_ray.config import TableSettings, tiny_model_path
from medr1_ray.config.loading import load_config
from medr1_ray.data.readers.omnimedvqa import read_omnimedvqa
from medr1_ray.data.readers.table.columns import USUAL_NAMES
from medr1_ray.data.readers.table.reader import TableReader
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.run import command as run_command
from tests.repository import REPOSITORY

HISTORY = "docs/log.md"  # commands and files of earlier versions
DOCUMENTS = [
    name
    for path in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md")))
    if (name := str(path.relative_to(REPOSITORY))) != HISTORY
]
OURS = re.compile(r"^(clusters|configs|benchmarks|tests|docs)/")


def blocks(language: str) -> list[str]:
    """Return the blocks of one language in all documents, also those inside of lists."""
    fence = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.M | re.S)
    return [
        textwrap.dedent(block)
        for document in DOCUMENTS
        for _, block in fence.findall((REPOSITORY / document).read_text())
    ]


def commands() -> list[str]:
    """Return the lines of all bash blocks, with continued lines joined and comments removed."""
    lines = []
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                lines.append(shlex.join(words) if "#" in line else line)
    return list(dict.fromkeys(lines))


def ray_parses(words: list[str]) -> None:
    """Check the options with Ray's own parser, without running the command."""
    from ray.scripts.scripts import cli

    command: click.Command = cli
    context = click.Context(cli, info_name="ray")
    words = words[1:]
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)  # type: ignore[assignment]
        context = click.Context(command, info_name=name, parent=context)
    # Options after `--` belong to the entrypoint, not to Ray.
    command.make_context(command.name, words[: words.index("--") + 2] if "--" in words else words)
    if "--" in words:
        run(words[words.index("--") + 1 :])


class Parsed(Exception):
    """The arguments were understood; the command goes no further."""


def parsed_by_its_own_parser(module: str, arguments: list[str]) -> None:
    def stop_after(parse: Callable[..., Any]) -> Callable[..., Any]:
        def stop(*positional: Any, **named: Any) -> None:
            parse(*positional, **named)
            raise Parsed

        return stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed):
            importlib.import_module(module).main()


def python_runs(words: list[str]) -> None:
    if words[1] != "-m":
        parsed_by_its_own_parser(words[1].removesuffix(".py").replace("/", "."), words[2:])
    elif words[2] in ("medr1_ray.train", "medr1_ray.sft"):
        trains(words[2], words[3:])
    elif words[2].startswith(("medr1_ray", "benchmarks")):
        folder = REPOSITORY / Path(*words[2].split("."))
        parsed_by_its_own_parser(f"{words[2]}.__main__" if folder.is_dir() else words[2], words[3:])
    else:
        assert words[2] in ("pip", "pytest", "venv", "vllm.entrypoints.openai.api_server")


def trains(command: str, arguments: list[str]) -> None:
    main = importlib.import_module(command).main
    # As the shell has it after the documents' `export SHARED=/mnt/shared`.
    given = [argument.replace("$SHARED", "/mnt/shared") for argument in arguments]
    resumed = [argument for argument in given if argument != "--resume"]
    with pytest.MonkeyPatch.context() as patch:
        # Data, models and buckets of the documents are not here.
        patch.setattr(run_command, "problems_of_a_start", lambda config, **_: [])
        patch.setattr(run_command, "would_bring", lambda config: None)
        assert main([*resumed, *([] if "--dry-run" in resumed else ["--dry-run"])]) == 0


def slurm_takes(words: list[str]) -> None:
    assert (REPOSITORY / words[1]).is_file()
    trains("medr1_ray.train", words[2:])


def make_knows(words: list[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    settings = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    assert all(re.search(rf"^{name} \?=|\$\({name}\)", makefile, re.M) for name in settings), words
    for target in (word for word in words[1:] if "=" not in word):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.M), target
    if "train" in words:
        configuration = settings.get("CONFIG", "configs/phantom_cpu.yaml")
        trains("medr1_ray.train", ["--config", configuration, *shlex.split(settings.get("ARGS", ""))])


def pip_installs(words: list[str]) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if match := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(match[1].split(",")) <= set(extras)


def files_exist(words: list[str]) -> None:
    """Check nothing more than `run` does: the program is not installed here."""


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "ray": ray_parses,
    "python": python_runs,
    ".venv/bin/python": python_runs,
    "sbatch": slurm_takes,
    "make": make_knows,
    "pip": pip_installs,
    "export": files_exist,
    "docker": files_exist,
    "kubectl": files_exist,
    "prometheus": files_exist,
    "vllm": files_exist,
    "serve": files_exist,
}


def run(words: list[str]) -> None:
    if "&&" in words:
        at = words.index("&&")
        run(words[:at])
        words = words[at + 1 :]
    for word in words:
        path = word.rpartition("=")[2]
        assert not OURS.match(path) or (REPOSITORY / path).exists(), path
    assert words[0] in CHECKS, f"add a check for {words[0]!r} to CHECKS"
    CHECKS[words[0]](words)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules
@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documents(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    subprocess.run(["bash", "-n", "-c", line], check=True)
    run(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "kubectl apply -f clusters/kubernetes/rayjobs.yaml",
        "python -m medr1_ray.train --config configs/phantom_cpu.yaml train.stesp=3",
        "ray job submit -- python -m medr1_ray.train --config configs/phantom_cpu.yaml train.stesp=3",
        'make train ARGS="train.stesp=3"',
        "make trains",
        "make train CONFIGS=configs/phantom_cpu.yaml",
        "pip install '.[gpus]'",
        "pip install '.[gpu]' && make trains",
    ],
)
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(AssertionError):
        run(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "python -m medr1_ray.timeline runs/x --frist 3",
        "python -m medr1_ray.timeline",
        "python -m medr1_ray.evaluate --model tiny --data x --split test --scoring letters",
        "python -m medr1_ray.data.prepare --root x",
        "python -m benchmarks.transformers_accuracy",
    ],
)
def test_a_wrong_argument_is_found(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(shlex.split(line))


def test_a_wrong_option_of_ray_is_found() -> None:
    with pytest.raises(click.UsageError):
        run(shlex.split("ray up --min-worker 3 clusters/aws.yaml"))


@pytest.mark.parametrize("block", blocks("yaml"))
def test_settings_of_the_documents_are_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "block.yaml").write_text(block)
    load_config([REPOSITORY / "configs/phantom_cpu.yaml", tmp_path / "block.yaml"])


def test_rows_of_the_documents_become_questions(tmp_path: Path) -> None:
    (block,) = blocks("json")
    rows = json.loads(block)
    for row in rows:
        image = tmp_path / row["image_path"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    folder = tmp_path / "QA_information" / "Open-access"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text(block)
    result = read_omnimedvqa(tmp_path)
    assert (len(result.questions), result.dropped) == (len(rows), ())
    assert all("Unknown" not in (question.modality, question.question_type) for question in result.questions)


def test_the_table_of_the_documents_becomes_questions(tmp_path: Path) -> None:
    (block,) = blocks("csv")
    (tmp_path / "questions.csv").write_text(block)
    for line in block.splitlines()[1:]:
        (tmp_path / line.partition(",")[0]).touch()
    table = TableReader(TableSettings(file="questions.csv"), tmp_path, tmp_path, images_needed=True).read()
    assert (len(table.rows), table.dropped, table.has_groups) == (3, (), True)
    assert [row.question.gold_letter for row in table.rows] == ["C", "B", "B"]


def test_the_usual_names_of_columns_are_documented() -> None:
    text = (REPOSITORY / "docs" / "data.md").read_text()
    for names in USUAL_NAMES.values():
        assert "; ".join(names) in text, names


def test_the_request_to_a_served_checkpoint_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (block for block in blocks("python") if "urllib.request" in block)
    Image.new("RGB", (40, 30)).save(tmp_path / "scan.png")
    (tmp_path / "runs/phantom_cpu/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/phantom_cpu/checkpoints/checkpoint-450").symlink_to(tiny_model_path())
    monkeypatch.chdir(tmp_path)
    sent: list[dict[str, Any]] = []

    def urlopen(request: urllib.request.Request) -> io.BytesIO:
        assert isinstance(request.data, bytes)
        sent.append(json.loads(request.data))
        return io.BytesIO(b'{"choices": [{"message": {"content": "<answer>B</answer>"}}]}')

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    exec(compile(block, "the document", "exec"), {})
    assert capsys.readouterr().out == "<answer>B</answer>\n"
    biases = load_vocabulary(tiny_model_path()).logit_bias
    assert sent[0]["logit_bias"] == {str(token): bias for token, bias in biases.items()}
    (image, text) = sent[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text["text"].startswith("How was this image acquired? A)CT, B)MRI, C)X-ray Your task:")


def paths(document: str) -> Iterator[str]:
    """Yield our files and folders that a document names, without patterns such as `<name>` or `*`."""
    text = (REPOSITORY / document).read_text()
    for name in re.findall(r"`([\w./-]+)`", text):
        if re.match(r"(medr1_ray|tests|configs|benchmarks|clusters|docs)/", name):
            yield name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        yield str((REPOSITORY / document).parent.joinpath(link).resolve().relative_to(REPOSITORY))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_are_there(document: str) -> None:
    assert [name for name in paths(document) if not (REPOSITORY / name).exists()] == []


def headings(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_sections_that_a_document_links_to_are_there(document: str) -> None:
    source = REPOSITORY / document
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", source.read_text()):
        target = source.parent / link if link else source
        assert anchor in headings(target), f"{link}#{anchor}"
