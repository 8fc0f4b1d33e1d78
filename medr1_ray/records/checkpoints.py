"""Checkpoints published atomically: a folder under `checkpoints/` is whole or not there.

    checkpoints/checkpoint-10/   Hugging Face files on top, learner_state/, state.json
    checkpoints/latest           text: the name of the newest folder, renamed into place
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from medr1_ray.base.atomic_files import write_text
from medr1_ray.data.stream import StreamState

STATE_FILE = "state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunState:
    """The state that a resumed run continues from, besides weights and optimizer.

    `unused_prompts` are the ids that were issued but not used when the checkpoint was written; they are issued
    again, so that a resume neither skips nor repeats a question. The ledger's counts exclude them.
    """

    step: int
    stream: StreamState
    unused_prompts: tuple[str, ...]
    groups_used: int
    groups_zero_variance: int
    groups_dropped: dict[str, int]
    groups_reissued: int
    answers_late: int
    completions: int
    seconds: dict[str, float]
    config_digest: str


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`.
        keep: how many to keep; older ones are deleted after a newer one is published.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def publish(self, state: RunState, write: Callable[[Path], Iterable[str]]) -> Path:
        """Let `write` fill a folder, add the state, and rename the folder into place; returns its path.

        Args:
            write: returns the names of the files that it wrote below the folder, on whatever node.

        Raises:
            RuntimeError: one of them is not there; nothing has been published or deleted.
        """
        name = f"checkpoint-{state.step}"
        target = self._folder / name
        partial = self._folder / f".{name}.partial"
        # Left by a save that was interrupted.
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        missing = [name for name in write(partial) if not (partial / name).exists()]
        if missing:
            raise RuntimeError(
                f"the checkpoint of step {state.step} is not complete: {len(missing)} files that learner ranks wrote "
                f"are not in {partial} on the driver's node, e.g. {missing[0]}. It is not published, older ones stay. "
                "All nodes must see the same run.dir; mount it again, and continue with --resume"
            )
        (partial / STATE_FILE).write_text(json.dumps(asdict(state), indent=1))
        # A step that is saved twice: the last one of a run, or one that a resumed run repeats.
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        # Last, so that `latest` always names a complete folder.
        write_text(self._folder / "latest", name + "\n")
        self._forget_old()
        return target

    def latest(self) -> Path:
        """The newest checkpoint. Raises ValueError when there is none."""
        return latest_checkpoint(self._folder)

    def _forget_old(self) -> None:
        # Partial folders do not match, since their names begin with a dot, nor do copies that somebody made.
        steps = sorted(int(found[1]) for path in self._folder.iterdir() if (found := _NAME.fullmatch(path.name)))
        for step in steps[: -self._keep]:
            shutil.rmtree(self._folder / f"checkpoint-{step}")


def latest_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint in a run's folder of checkpoints. Raises ValueError when there is none."""
    pointer = folder / "latest"
    if not pointer.exists():
        raise ValueError(
            f"no checkpoint to resume from: {pointer} does not exist. Start without --resume, or set run.dir to a "
            "run that has saved one (run.save_every)"
        )
    checkpoint = folder / pointer.read_text().strip()
    if not checkpoint.is_dir():
        raise ValueError(
            f"{pointer} names {checkpoint.name}, which is not there; bring it back, or write the name of another "
            "checkpoint into that file"
        )
    return checkpoint


def read_state(checkpoint: Path) -> RunState:
    """The state of a published checkpoint. Raises ValueError when the file is missing or of another format."""
    path = checkpoint / STATE_FILE
    try:
        fields = json.loads(path.read_text())
        return RunState(
            **{
                **fields,
                "stream": StreamState(**fields["stream"]),
                "unused_prompts": tuple(fields["unused_prompts"]),
            }
        )
    except (OSError, json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a state file of this version: {error!r}") from error
