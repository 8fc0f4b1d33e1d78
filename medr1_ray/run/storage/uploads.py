"""Bringing a run's checkpoints to its storage while it goes on training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event, Thread

from medr1_ray.base.manifest import StoredFile
from medr1_ray.config import Config
from medr1_ray.records.checkpoints import Checkpoints, Retention, Unpublished, latest_checkpoint
from medr1_ray.records.tracker import read_accuracies
from medr1_ray.run.storage.objects import Storage, StorageError
from medr1_ray.run.storage.owner import Owner, require_unowned
from medr1_ray.run.storage.stored_run import require_no_run, retention_of, upload_checkpoint, upload_files


@contextmanager
def stored_checkpoints_of(
    config: Config, resumed_from: Path | None, accuracies: Mapping[int, float], say: Callable[[str], None]
) -> Iterator[Checkpoints]:
    """The checkpoints of a run, which are uploaded where `run.storage` is set; on leaving, the last of them and the
    files of the run are there.

    Args:
        config: with an absolute `run.dir`, which is this process's.
        resumed_from: is uploaded first, unless it is there.
        accuracies: of the evaluations so far, by step; the run adds to it.

    Raises:
        ValueError: the storage holds another run, another process writes there, or, at the end of a run that is done,
            something did not arrive.
    """
    keep = config.run.keep_checkpoints
    folder = config.run.dir / "checkpoints"
    storage = Storage.of(config)
    if storage is None:
        yield Checkpoints(folder, keep, resumed_from, accuracies)
        return
    if resumed_from is None:
        require_no_run(storage)
    require_unowned(storage, say)
    retention = retention_of(storage, keep, resumed_from, accuracies)
    with Owner(storage) as owner, Uploads(storage, owner, config.run.dir, retention, say) as uploads:
        if resumed_from is not None:
            uploads.begin(resumed_from)
        yield UploadedCheckpoints(folder, keep, resumed_from, accuracies, uploads)


def upload_again(config: Config, say: Callable[[str], None]) -> None:
    """Bring to the storage of a run that is done what did not arrive when it ended. Raises ValueError as above."""
    if config.run.storage is not None:
        checkpoint = latest_checkpoint(config.run.dir / "checkpoints")
        with stored_checkpoints_of(config, checkpoint, read_accuracies(config.run.dir), say):
            pass


class UploadedCheckpoints(Checkpoints):
    """Checkpoints that are uploaded once they are published."""

    def __init__(
        self, folder: Path, keep: int, resumed_from: Path | None, accuracies: Mapping[int, float], uploads: Uploads
    ) -> None:
        super().__init__(folder, keep, resumed_from, accuracies)
        self._uploads = uploads

    def may_publish(self, wait_seconds: float = 0.0) -> bool:
        # The one before first: publishing may delete what is being uploaded.
        return self._uploads.wait(wait_seconds)

    def publish(self, checkpoint: Unpublished, files: Iterable[StoredFile]) -> Path:
        self._uploads.wait()
        path = super().publish(checkpoint, files)
        self._uploads.begin(path)
        return path


class Uploads(AbstractContextManager["Uploads"]):
    """Uploads one checkpoint at a time in a thread, and on leaving the run's files as they are then.

    One that fails is told to `say`; it ends nothing, and the next one tries again. No request waits for ever, so
    neither does `wait`.
    """

    def __init__(
        self, storage: Storage, owner: Owner, folder: Path, retention: Retention, say: Callable[[str], None]
    ) -> None:
        self._storage = storage
        self._owner = owner
        self._folder = folder
        self._retention = retention
        self._say = say
        self._last: Path | None = None
        self._problem: str | None = None
        self._done = Event()
        self._done.set()

    def begin(self, checkpoint: Path) -> None:
        """Upload a checkpoint behind whatever goes on; waits for the one before."""
        self.wait()
        self._last = checkpoint
        self._done.clear()
        # A daemon, so that Ctrl-C ends a process that waits for it.
        Thread(target=self._run, args=(checkpoint,), daemon=True).start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is being uploaded, at most so long; returns whether nothing is."""
        return self._done.wait(seconds)

    def __exit__(self, kind: object, *_: object) -> None:
        if not self._done.is_set():
            self._say(f"waiting until {self._named} is in {self._storage}; Ctrl-C leaves it")
            self.wait()
        if self._problem and (last := self._last):
            self._problem = self._problem_of(lambda: self._upload(last))
        if self._problem is None:
            # What came after the last checkpoint: the evaluations and the summary of a run that is done.
            self._problem = self._problem_of(lambda: upload_files(self._storage, self._folder))
        if self._problem is None:
            return
        told = (
            f"NOT IN STORAGE: {self._named}, or what came after it ({self._problem}). All is in {self._folder}; the "
            "same command with --resume uploads it"
        )
        if kind is None:
            raise StorageError(told)
        self._say(told)

    @property
    def _named(self) -> str:
        return self._last.name if self._last else "the run's last files"

    def _run(self, checkpoint: Path) -> None:
        try:
            before, self._problem = self._problem, self._problem_of(lambda: self._upload(checkpoint))
            if self._problem:
                self._say(
                    f"NOT IN STORAGE: {checkpoint.name} ({self._problem}). What is there stays; the run goes on and "
                    "uploads its next checkpoint"
                )
            elif before:
                self._say(f"in storage again: {checkpoint.name}")
        finally:
            self._done.set()

    def _upload(self, checkpoint: Path) -> None:
        upload_files(self._storage, self._folder)
        upload_checkpoint(self._storage, checkpoint, self._retention)

    def _problem_of(self, upload: Callable[[], None]) -> str | None:
        try:
            self._owner.require()
            upload()
        except (ValueError, OSError) as error:  # a file here that cannot be read, too
            return str(error)
        return None
