"""One name for all commands."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib

import pytest

from medr1_ray.__main__ import COMMANDS, main
from tests.repository import REPOSITORY


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "medr1_ray"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: medr1-ray COMMAND")


def test_every_command_can_be_run_and_every_module_that_is_one_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"usage: python -m medr1_ray.{name} " in capsys.readouterr().out
    package = REPOSITORY / "medr1_ray"
    runnable = {path for path in package.rglob("*.py") if '__name__ == "__main__"' in path.read_text()}
    listed = {package.parent / f"{module.replace('.', '/')}.py" for module, _ in COMMANDS.values()}
    alone = {package / "__main__.py", package / "preflight.py", package / "tiny" / "probe.py"}
    assert runnable - listed == alone


def test_arguments_reach_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timeline", "/nope"]) == 1
    assert capsys.readouterr().err.startswith("error: /nope holds no spans.jsonl")


@pytest.mark.parametrize(("name", "says"), [("trian", "did you mean train?"), ("xyz", "the commands are train, sft")])
def test_an_unknown_command_is_one_line(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name!r} is not a command; {says}")


def test_the_installed_name_is_this_function() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["medr1-ray"].split(":")
    assert getattr(importlib.import_module(module), function) is main
