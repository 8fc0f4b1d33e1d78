"""Every command line of the documents, run as far as a machine without a cluster can."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.repository import REPOSITORY

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/cluster.md", "docs/sizing.md")
OURS = re.compile(r"^(clusters|configs|benchmarks|tests|docs)/")


def commands() -> list[str]:
    """The lines of all bash blocks, continued lines joined, comments taken off."""
    lines = []
    for document in DOCUMENTS:
        for block in re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / document).read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    lines.append(shlex.join(words) if "#" in line else line)
    return list(dict.fromkeys(lines))


def ray_parses(words: list[str]) -> None:
    """Ray's own parser takes the options; nothing is run but its help."""
    from ray.scripts.scripts import cli

    command: click.Command = cli
    context = click.Context(cli, info_name="ray")
    words = words[1:]
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)  # type: ignore[assignment]
        context = click.Context(command, info_name=name, parent=context)
    # An entrypoint has options of its own, which are not Ray's.
    command.make_context(command.name, words[: words.index("--") + 2] if "--" in words else words)
    if "--" in words:
        run(words[words.index("--") + 1 :])


def python_runs(words: list[str]) -> None:
    if words[1] != "-m":
        assert (REPOSITORY / words[1]).is_file()
    elif words[2] in ("medr1_ray.train", "medr1_ray.sft"):
        trains(words[2], words[3:])
    elif words[2].startswith(("medr1_ray", "benchmarks")):
        module = REPOSITORY / Path(*words[2].split("."))
        source = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__main__.py"
        for option in words[3:]:
            assert not option.startswith("--") or f'"{option}"' in source.read_text(), option
    else:
        assert words[2] in ("pip", "pytest", "venv")


def trains(command: str, arguments: list[str]) -> None:
    main = importlib.import_module(command).main
    resumed = [argument for argument in arguments if argument != "--resume"]
    assert main([*resumed, *([] if "--dry-run" in resumed else ["--dry-run"])]) == 0


def slurm_takes(words: list[str]) -> None:
    assert (REPOSITORY / words[1]).is_file()
    trains("medr1_ray.train", words[2:])


def files_exist(words: list[str]) -> None:
    """All that can be said of a program that is not here: the check of `run`."""


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "ray": ray_parses,
    "python": python_runs,
    ".venv/bin/python": python_runs,
    "sbatch": slurm_takes,
    "export": files_exist,
    "make": files_exist,
    "pip": files_exist,
    "docker": files_exist,
    "kubectl": files_exist,
    "prometheus": files_exist,
    "vllm": files_exist,
    "serve": files_exist,
}


def run(words: list[str]) -> None:
    for word in words:
        path = word.rpartition("=")[2]
        assert not OURS.match(path) or (REPOSITORY / path).exists(), path
    assert words[0] in CHECKS, f"say here how to check {words[0]!r}"
    CHECKS[words[0]](words)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules
@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documents(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    subprocess.run(["bash", "-n", "-c", line], check=True)
    words = shlex.split(line)
    run(words)


def test_a_wrong_option_is_found() -> None:
    with pytest.raises(click.UsageError):
        run(shlex.split("ray up --min-worker 3 clusters/aws.yaml"))
    with pytest.raises(AssertionError):
        run(shlex.split("kubectl apply -f clusters/kubernetes/rayjobs.yaml"))
    with pytest.raises(AssertionError):
        run(shlex.split("python -m medr1_ray.timeline runs/x --frist 3"))
    with pytest.raises(AssertionError):
        run(shlex.split("ray job submit -- python -m medr1_ray.train --config configs/phantom_cpu.yaml train.stesp=3"))
