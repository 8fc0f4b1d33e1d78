"""What a run keeps in its storage, in the order that makes it whole at each moment.

    checkpoints/checkpoint-10/   as in run.dir; it counts once its manifest.json is there, which is written last
    checkpoints/latest           the name of the one to go on from; where it cannot be read, the newest is
    files/3/                     the other files that a resumed run needs, and a manifest; the highest whole one counts
    owner.json                   who writes here (owner.py)

Files go before the checkpoint, so that no checkpoint lacks its lines of metrics; later lines are moved aside on resume.
Each time under another number: a folder that is written over would be neither the old nor the new one for a while.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from medr1_ray.base.manifest import MANIFEST_FILE, StoredFile, manifest_text
from medr1_ray.records.checkpoints import LATEST_FILE, Retention, step_of
from medr1_ray.run.storage.objects import Storage

CHECKPOINTS = "checkpoints"
_FILES = "files"
# Of the names in run.dir. Rollouts, recorded groups and logs are not read by a resumed run, and may be large.
_NEEDED = (
    *("config.yaml", "metrics*.jsonl", "spans.jsonl", "summary.json", "reward_errors.jsonl", "wandb_id"),
    *("evaluations", "set_aside", "tensorboard"),
)


def stored_checkpoints(storage: Storage) -> list[str]:
    """Return the names of the checkpoints that have a manifest, in the order in which a resume tries them."""
    steps = sorted(_steps(storage, whole=True), reverse=True)
    latest = step_of((storage.read(f"{CHECKPOINTS}/{LATEST_FILE}") or b"").decode(errors="replace").strip())
    # Later ones are another past, which was rolled back.
    tried = [step for step in steps if latest is None or step <= latest]
    return [f"checkpoint-{step}" for step in tried or steps]


def require_no_run(storage: Storage) -> None:
    """Raise ValueError where the storage holds a run with a checkpoint."""
    if found := stored_checkpoints(storage):
        raise ValueError(
            f"{storage} holds a run already ({found[0]}); continue it with --resume, choose another run.storage, or "
            "delete it"
        )


def retention_of(
    storage: Storage, keep: int, resumed_from: Path | None, accuracies: Mapping[int, float]
) -> Retention:
    """Return what decides which checkpoints stay there, of a run that goes on from `resumed_from`."""
    return Retention(keep, _steps(storage, whole=True), resumed_from, accuracies)


def upload_checkpoint(storage: Storage, checkpoint: Path, retention: Retention) -> None:
    """Upload a published checkpoint, unless the same is there; then delete what is no longer kept."""
    name, manifest = f"{CHECKPOINTS}/{checkpoint.name}", (checkpoint / MANIFEST_FILE).read_bytes()
    if storage.read(f"{name}/{MANIFEST_FILE}") != manifest:
        storage.upload(checkpoint, name)
    storage.write(f"{CHECKPOINTS}/{LATEST_FILE}", f"{checkpoint.name}\n".encode())
    _forget(storage, step_of(checkpoint.name) or 0, retention)


def upload_files(storage: Storage, folder: Path) -> None:
    """Upload the files of run.dir that a resumed run needs, besides the checkpoint, as they are at this moment."""
    numbers = sorted({number for number, _ in _numbered(storage)})
    name, files = f"{_FILES}/{(numbers or [0])[-1] + 1}", []
    for path in _needed(folder):
        # The run goes on writing: what counts is what is read here. A line that is cut off is dropped on resume.
        content, inner = path.read_bytes(), path.relative_to(folder).as_posix()
        storage.write(f"{name}/{inner}", content)
        files.append(StoredFile(inner, len(content), hashlib.sha256(content).hexdigest()))
    storage.publish(name, manifest_text(files).encode())
    for number in numbers:
        storage.delete_folder(f"{_FILES}/{number}")


def read_config(storage: Storage) -> bytes | None:
    """Return the settings of the run that is stored, as it wrote them to its config.yaml."""
    found = ((number, name) for number, name in _numbered(storage) if name == MANIFEST_FILE)
    number = max(found, default=None)
    return storage.read(f"{_FILES}/{number[0]}/config.yaml") if number else None


def download_files(storage: Storage, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Bring the newest whole set of files to a folder that is not there yet, and return what it brought; `say` is told
    of damaged sets."""
    for number in sorted({number for number, _ in _numbered(storage)}, reverse=True):
        damage = storage.download(f"{_FILES}/{number}", folder)
        if damage is None:
            return _needed(folder)
        shutil.rmtree(folder, ignore_errors=True)
        # Without a manifest it was being uploaded.
        say(f"{storage}: {_FILES}/{number} is damaged and is not used: {damage}")
    return []


def _forget(storage: Storage, step: int, retention: Retention) -> None:
    whole = _steps(storage, whole=True)
    kept = whole - {*retention.superseded(step, whole)}
    # With what uploads left that were broken off.
    for each in _steps(storage, whole=False) - kept:
        if each <= step:
            storage.delete_folder(f"{CHECKPOINTS}/checkpoint-{each}")


def _steps(storage: Storage, *, whole: bool) -> set[int]:
    parts = (name.split("/") for name in storage.sizes(CHECKPOINTS))
    named = ((step_of(folder), inner) for _, folder, *inner in parts)
    return {step for step, inner in named if step is not None and (inner == [MANIFEST_FILE] or not whole)}


def _numbered(storage: Storage) -> Iterator[tuple[int, str]]:
    """Yield the number of each file's folder, and its name in there."""
    for name in storage.sizes(_FILES):
        _, number, *inner = name.split("/")
        if number.isdecimal():
            yield int(number), "/".join(inner)


def _needed(folder: Path) -> list[Path]:
    top = sorted({path for pattern in _NEEDED for path in folder.glob(pattern)})
    return [file for path in top for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()]
