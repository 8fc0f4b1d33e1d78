"""A start on a fresh machine: what is brought, when, and what is refused before anything here is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medr1_ray.config import Config
from medr1_ray.config.loading import write_config
from medr1_ray.records.checkpoints import latest_checkpoint, whole_checkpoint
from medr1_ray.records.directory import LOCK_FILE, check_run_directory
from medr1_ray.records.file_lock import FileLock
from medr1_ray.run import command
from medr1_ray.run.start_checks import problems_of_a_start
from medr1_ray.run.storage.fetch import bring_newest, check_storage, would_bring
from medr1_ray.run.storage.objects import Storage
from medr1_ray.run.storage.stored_run import retention_of, upload_checkpoint, upload_files
from tests.faults.storage import URL, FaultyFiles, a_config, files, save

__all__ = ["files"]


def unexpected(line: str) -> None:
    raise AssertionError(line)


def stored(config: Config, *steps: int) -> None:
    """Let a run save and upload these steps."""
    storage = Storage.of(config)
    assert storage is not None
    for step in steps:
        checkpoint = save(config, step)
        upload_files(storage, config.run.dir)
        upload_checkpoint(storage, checkpoint, retention_of(storage, 2, None, {}))


def test_an_empty_directory_becomes_the_run(tmp_path: Path, files: type[FaultyFiles]) -> None:
    lost = a_config(tmp_path / "lost")
    stored(lost, 2, 4)
    config = a_config(tmp_path / "fresh", train={"steps": 60})
    assert would_bring(config) == "checkpoint-4"
    said: list[str] = []
    bring_newest(config, said.append)
    assert said == [f"bringing checkpoint-4 from run.storage='{URL}'"]
    assert sorted(path.name for path in config.run.dir.iterdir()) == [
        *(".lock", "checkpoints", "config.yaml", "evaluations", "metrics.jsonl"),
    ]
    checkpoint = whole_checkpoint(check_run_directory(config, resume=True).checkpoints, unexpected)
    for path in (lost.run.dir / "checkpoints" / "checkpoint-4").rglob("*"):
        if path.is_file():
            there = checkpoint / path.relative_to(lost.run.dir / "checkpoints" / "checkpoint-4")
            assert there.read_bytes() == path.read_bytes()
    assert would_bring(config) is None
    bring_newest(config, unexpected)


def test_an_older_directory_is_brought_up_and_keeps_what_it_had(tmp_path: Path, files: type[FaultyFiles]) -> None:
    here = a_config(tmp_path / "here")
    stored(here, 2)
    elsewhere = a_config(tmp_path / "elsewhere")
    stored(elsewhere, 4)
    (here.run.dir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    said: list[str] = []
    bring_newest(here, said.append)
    assert said[1] == f"{here.run.dir}/earlier-1 has what was here of an older training of this run"
    assert len((here.run.dir / "earlier-1" / "metrics.jsonl").read_text().splitlines()) == 3
    assert len((here.run.dir / "metrics.jsonl").read_text().splitlines()) == 4
    assert latest_checkpoint(here.run.dir / "checkpoints").name == "checkpoint-4"
    assert (here.run.dir / "checkpoints" / "checkpoint-2").is_dir()


def test_a_newer_directory_is_left_alone(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    stored(config, 2)
    save(config, 4)
    bring_newest(config, unexpected)
    assert latest_checkpoint(config.run.dir / "checkpoints").name == "checkpoint-4"
    # Back by hand: what is stored is not newer than what is here.
    (config.run.dir / "checkpoints" / "latest").write_text("checkpoint-2\n")
    stored_in = a_config(tmp_path / "other")
    stored(stored_in, 4)
    bring_newest(config, unexpected)
    assert latest_checkpoint(config.run.dir / "checkpoints").name == "checkpoint-2"


def test_a_later_checkpoint_of_another_past_hides_nothing(tmp_path: Path, files: type[FaultyFiles]) -> None:
    here = a_config(tmp_path / "here", run={"keep_checkpoints": 3})
    stored(here, 2)
    save(here, 6)  # damaged, so that the run went on from the one before
    stored(here, 3)
    stored(a_config(tmp_path / "elsewhere"), 4)
    assert would_bring(here) == "checkpoint-4"
    said: list[str] = []
    bring_newest(here, said.append)
    assert said[0] == f"bringing checkpoint-4 from run.storage='{URL}'"
    assert latest_checkpoint(here.run.dir / "checkpoints").name == "checkpoint-4"


def test_going_back_by_hand_stays_so(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "run")
    stored(config, 2, 4)
    checkpoints = config.run.dir / "checkpoints"
    (checkpoints / "latest").write_text("checkpoint-2\n")
    bring_newest(config, unexpected)
    assert latest_checkpoint(checkpoints).name == "checkpoint-2"
    # Also where the later ones were deleted, there as here.
    shutil.rmtree(checkpoints / "checkpoint-4")
    files.put_back({name: each for name, each in files.content().items() if "checkpoint-4/" not in name})
    bring_newest(config, unexpected)
    assert latest_checkpoint(checkpoints).name == "checkpoint-2"


def test_a_damaged_one_is_passed_over_loudly(tmp_path: Path, files: type[FaultyFiles]) -> None:
    stored(a_config(tmp_path / "lost"), 2, 4)
    content = files.content()
    name = "checkpoints/checkpoint-4/model.safetensors"
    files.put_back({**content, name: b"x" + content[name][1:]})
    config = a_config(tmp_path / "fresh")
    said: list[str] = []
    bring_newest(config, said.append)
    assert "checkpoint-4 is damaged and is not used: model.safetensors has other bytes than were written" in said[1]
    assert latest_checkpoint(config.run.dir / "checkpoints").name == "checkpoint-2"


def test_without_a_whole_one_there_is_no_start_from_nothing(tmp_path: Path, files: type[FaultyFiles]) -> None:
    stored(a_config(tmp_path / "lost"), 2)
    files.put_back({name: each for name, each in files.content().items() if "model" not in name})
    config = a_config(tmp_path / "fresh")
    with pytest.raises(ValueError, match=r"no whole checkpoint: model.safetensors is missing in checkpoint-2\."):
        bring_newest(config, lambda line: None)
    assert not (config.run.dir / "checkpoints").exists()


@pytest.mark.parametrize("here", [(), (1,), (8,)])
def test_the_storage_of_another_run_is_refused_and_nothing_is_touched(
    tmp_path: Path, files: type[FaultyFiles], here: tuple[int, ...]
) -> None:
    config = a_config(tmp_path / "here", train={"seed": 1})
    for step in here:
        save(config, step)
    stored(a_config(tmp_path / "other"), 4)
    def there() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in config.run.dir.rglob("*") if path.name != LOCK_FILE}

    before = there()
    with pytest.raises(ValueError, match=rf"train.seed is 1, but the run in run\.storage='{URL}' was started with 0"):
        bring_newest(config, unexpected)
    assert there() == before


def test_a_directory_in_use_is_not_written(tmp_path: Path, files: type[FaultyFiles]) -> None:
    stored(a_config(tmp_path / "lost"), 4)
    config = a_config(tmp_path / "here")
    save(config, 2)
    lock = FileLock(config.run.dir / LOCK_FILE)
    with pytest.raises(ValueError, match="is in use by process"):
        bring_newest(config, unexpected)
    lock.release()


def test_an_interrupted_start_brings_it_again(
    tmp_path: Path, files: type[FaultyFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(a_config(tmp_path / "lost"), 2, 4)
    config = a_config(tmp_path / "fresh")
    from medr1_ray.run.storage import fetch

    replace, left = fetch.os.replace, [1]

    def killed(source: Path, target: Path) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(source, target)

    monkeypatch.setattr(fetch.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        bring_newest(config, lambda line: None)
    monkeypatch.undo()
    bring_newest(config, lambda line: None)
    assert latest_checkpoint(config.run.dir / "checkpoints").name == "checkpoint-4"
    assert len((config.run.dir / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_new_run_is_refused_and_a_start_that_cannot_write_is_found(tmp_path: Path, files: type[FaultyFiles]) -> None:
    config = a_config(tmp_path / "fresh")
    check_storage(config, resume=False)
    assert files.content() == {}
    stored(a_config(tmp_path / "lost"), 2)
    check_storage(config, resume=True)
    with pytest.raises(ValueError, match=r"holds a run already \(checkpoint-2\); continue it with --resume"):
        check_storage(config, resume=False)
    assert any("holds a run already" in problem for problem in problems_of_a_start(config, resume=False))
    files.set("refuse")
    assert any("PermissionError: Access Denied" in problem for problem in problems_of_a_start(config, resume=True))
    assert would_bring(a_config(tmp_path / "x", "nothing://a")) is None


class Runs:
    """Stands in for a training: notes whether it resumes."""

    def __init__(self) -> None:
        self.resumed: list[bool] = []

    def __call__(self, config: Config, *, resume: bool) -> Path:
        self.resumed.append(resume)
        return Path("summary.json")


@pytest.mark.parametrize("given", ["--resume", "run.resume=auto"])
def test_the_command_goes_on_from_the_storage(
    tmp_path: Path,
    files: type[FaultyFiles],
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = a_config(tmp_path / "run")
    settings = tmp_path / "settings.yaml"
    write_config(config, settings)
    stored(config, 40)
    shutil.rmtree(config.run.dir)
    monkeypatch.setattr(command, "dry_run", lambda config: "the report")
    arguments, runs = ["--config", str(settings), given], Runs()

    command.run_command("grpo", "", runs, [*arguments, "--dry-run"])
    said = capsys.readouterr()
    assert f"a start would first bring checkpoint-40 from {URL}; settings are compared with it then" in said.out
    assert "holds a run" not in said.err
    assert "no run to resume" not in said.err
    assert not config.run.dir.exists(), "a dry run leaves nothing"

    assert command.run_command("grpo", "", runs, arguments) == 0
    assert runs.resumed == [True]
    # It is done: the next start brings, where it must, what did not arrive.
    (config.run.dir / "summary.json").write_text(json.dumps({"steps": 40}))
    assert command.run_command("grpo", "", runs, arguments) == 0
    assert runs.resumed == [True]
    assert "nothing left to do: 40 of train.steps=40" in capsys.readouterr().out
    assert any(name.endswith("summary.json") for name in files.content())


def test_the_command_starts_where_nothing_is_stored(tmp_path: Path, files: type[FaultyFiles]) -> None:
    settings, runs = tmp_path / "settings.yaml", Runs()
    write_config(a_config(tmp_path / "run"), settings)
    assert command.run_command("grpo", "", runs, ["--config", str(settings), "run.resume=auto"]) == 0
    assert runs.resumed == [False]
