"""Checkpoints published atomically: a folder under `checkpoints/` is whole or not there.

    checkpoints/checkpoint-10/   Hugging Face files on top, learner_state/, state.json, manifest.json
    checkpoints/latest           text: the name of the folder to go on from, renamed into place
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from medr1_ray.base.atomic_files import write_text
from medr1_ray.base.manifest import (
    NotSavedError,
    StoredFile,
    find_damage,
    store,
    sync_folder,
    write_manifest,
)
from medr1_ray.data.stream import StreamState
from medr1_ray.records.summary import Totals

STATE_FILE = "state.json"
LATEST_FILE = "latest"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunState:
    """The state that a resumed run continues from, besides weights and optimizer.

    `unused_prompts` are the ids that were issued but not used when the checkpoint was written; they are issued
    again, so that a resume neither skips nor repeats a question. The ledger's counts exclude them. `steps_skipped`
    counts the optimizer steps whose gradient was not finite, `metric_lines` the lines of metrics so far.
    """

    step: int
    stream: StreamState
    unused_prompts: tuple[str, ...]
    groups_used: int
    groups_zero_variance: int
    groups_dropped: dict[str, int]
    groups_reissued: int
    answers_late: int
    totals: Totals
    config_digest: str
    steps_skipped: int
    metric_lines: int


_STATE = TypeAdapter(RunState)


@dataclass(frozen=True)
class Unpublished:
    """A checkpoint that is being written: the folder to fill, and `state.json` as it was when that began."""

    step: int
    folder: Path
    state: str


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`.
        keep: how many to keep, besides the one of the best evaluation; others are deleted after a newer one is
            published.
        resumed_from: the one that the run went on from.
        accuracies: of the evaluations so far, by step; the run adds to it.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        resumed_from: Path | None = None,
        accuracies: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        self._folder = folder
        self._retention = Retention(keep, saved_steps(folder), resumed_from, accuracies)

    def begin(self, state: RunState) -> Unpublished:
        """Make the folder that a checkpoint of this state is to be written into. `state` may change afterwards.

        Raises:
            NotSavedError: there is no room or no permission to write.
        """
        partial = self._folder / f".checkpoint-{state.step}.partial"
        with _not_saved(state.step):
            # Left by a save that was interrupted.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        return Unpublished(state.step, partial, json.dumps(asdict(state), indent=1))

    def publish(self, checkpoint: Unpublished, files: Iterable[StoredFile]) -> Path:
        """Add state and manifest to what was written, and rename the folder into place; returns its path.

        There is no moment without a whole checkpoint: what has the name already is set aside until the new one is in
        place, and `recover` undoes what an interruption left.

        Args:
            files: what was written below the folder, on whatever node.

        Raises:
            NotSavedError: there is no room or no permission to write; nothing has been published or deleted.
            RuntimeError: a file is not there, or not whole; as above.
        """
        name = f"checkpoint-{checkpoint.step}"
        with _not_saved(checkpoint.step):
            files = list(files)
            _require_whole(checkpoint.folder, files, checkpoint.step)
            (checkpoint.folder / STATE_FILE).write_text(checkpoint.state)
            write_manifest(checkpoint.folder, [*files, store(checkpoint.folder, STATE_FILE)])
            self.adopt(checkpoint.folder, name)
        self._forget_old(checkpoint.step)
        return self._folder / name

    def may_publish(self, wait_seconds: float = 0.0) -> bool:
        """Whether `publish` would wait for nothing; may itself wait so long for that."""
        return True

    @staticmethod
    def give_up(checkpoint: Unpublished) -> None:
        """Delete what was written of a checkpoint that is not to be published: it may have what room was left."""
        shutil.rmtree(checkpoint.folder, ignore_errors=True)

    def adopt(self, partial: Path, name: str) -> None:
        """Rename a folder that is whole into place, as the checkpoint to go on from."""
        self._put_in_place(partial, self._folder / name)
        # Last, so that `latest` always names a complete folder.
        write_text(self._folder / LATEST_FILE, name + "\n")

    def recover(self) -> None:
        """Undo what an interrupted `publish` left: put back what it had set aside, and delete what it had not ended."""
        for aside in self._folder.glob(".checkpoint-*.replaced"):
            target = self._folder / aside.name.removeprefix(".").removesuffix(".replaced")
            if target.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(target)
        for partial in self._folder.glob(".checkpoint-*.partial"):
            shutil.rmtree(partial)

    @staticmethod
    def _put_in_place(partial: Path, target: Path) -> None:
        # A step is saved twice where a run was resumed from an older checkpoint.
        aside = target.with_name(f".{target.name}.replaced")
        if target.exists():
            target.rename(aside)
        partial.rename(target)
        sync_folder(target.parent)
        shutil.rmtree(aside, ignore_errors=True)

    def _forget_old(self, step: int) -> None:
        for each in self._retention.superseded(step, saved_steps(self._folder)):
            # One that cannot be deleted (a mount, a file that is open on NFS) is tried again after the next.
            shutil.rmtree(self._folder / f"checkpoint-{each}", ignore_errors=True)


class Retention:
    """Which checkpoints of a run stay, wherever they are: the `keep` newest, and the one of the best evaluation.

    Those of steps after `resumed_from` that are there when the run goes on from it are damaged, or of a past that was
    rolled back. They count for nothing, and go once the run has passed their steps and has `keep` of its own.

    The accuracies are looked at when something is to go: the evaluation of a step may come after its checkpoint.
    """

    def __init__(
        self, keep: int, there: Iterable[int], resumed_from: Path | None, accuracies: Mapping[int, float]
    ) -> None:
        self._keep = keep
        self._accuracies = accuracies
        step = step_of(resumed_from.name) if resumed_from else None
        self._passed_over = {each for each in there if step is not None and each > step}

    def superseded(self, step: int, there: Iterable[int]) -> list[int]:
        """Return which of the steps that are there to delete, now that this one is published; none is a later one."""
        self._passed_over.discard(step)
        passed = {each for each in there if each <= step}
        own = sorted(passed - self._passed_over)
        best = max(own, key=lambda each: (self._accuracies.get(each, -1.0), each), default=None)
        others = passed & self._passed_over if len(own) >= self._keep else ()
        return [*(each for each in own[: -self._keep] if each != best), *sorted(others)]


def whole_checkpoint(folder: Path, say: Callable[[str], None]) -> Path:
    """Return the newest checkpoint of which every byte is as it was written, beginning with the one `latest` names.

    `say` is told what is wrong with each that is passed over. Raises ValueError when there is none.
    """
    first = latest_checkpoint(folder)
    newest = step_of(first.name) or 0
    older = [folder / f"checkpoint-{step}" for step in reversed(saved_steps(folder)) if step < newest]
    for checkpoint in (first, *older):
        damage = find_damage(checkpoint) or _state_damage(checkpoint)
        if damage is None:
            return checkpoint
        say(f"{checkpoint} is damaged and is not used: {damage}")
    raise ValueError(
        f"none of the checkpoints in {folder} is whole: {damage} in {checkpoint.name}. Bring one back, or, if its "
        "weights are good (as those of an earlier version, which wrote no manifest), start another run from them with "
        f"model.path={first}"
    )


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint in a run's folder of checkpoints, whole or not."""
    return bool(saved_steps(folder))


def latest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that `latest` names, else the newest; its content is not looked at.

    Raises ValueError when there is none.
    """
    pointer = folder / LATEST_FILE
    named = folder / pointer.read_text(errors="replace").strip() if pointer.is_file() else None
    if named is not None and step_of(named.name) is not None and named.is_dir():
        return named
    steps = saved_steps(folder)
    if not steps:
        lost = f" ({LATEST_FILE} names {named.name}, which is not there)" if named else ""
        raise ValueError(
            f"no checkpoint to resume from in {folder}{lost}. Start without --resume, or set run.dir to a run that has "
            "saved one (run.save_every)"
        )
    return folder / f"checkpoint-{steps[-1]}"


@contextmanager
def _not_saved(step: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotSavedError(f"the checkpoint of step {step} cannot be written: {error}") from None


def _require_whole(folder: Path, files: Iterable[StoredFile], step: int) -> None:
    missing = [file.name for file in files if _size(folder / file.name) != file.bytes]
    if missing:
        raise RuntimeError(
            f"the checkpoint of step {step} is not complete: {len(missing)} files that learner ranks wrote "
            f"are not whole in {folder} on the driver's node, e.g. {missing[0]}. It is not published, older ones stay. "
            "All nodes must see the same run.dir; mount it again, and continue with --resume"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, in order; copies under other names do not count."""
    if not folder.is_dir():
        return []
    steps = ((step_of(path.name), path) for path in folder.iterdir())
    return sorted(step for step, path in steps if step is not None and path.is_dir())


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint of this name, None where it is not one of ours."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def _state_damage(checkpoint: Path) -> str | None:
    try:
        read_state(checkpoint)
    except ValueError as error:
        return str(error)
    return None


def read_state(checkpoint: Path) -> RunState:
    """The state of a published checkpoint. Raises ValueError when the file is missing or of another format."""
    path = checkpoint / STATE_FILE
    try:
        return parse_state(path.read_bytes(), path)
    except OSError as error:
        raise ValueError(f"{path} is not a state file of this version ({error})") from None


def parse_state(content: bytes, where: object) -> RunState:
    """The state that a file holds. Raises ValueError, which names `where`, when it is of another format."""
    try:
        return _STATE.validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(f"{where} is not a state file of this version ({what})") from None
