"""Files behind a URL: an object store, or a folder. No request waits for ever, and every failure is one line.

An object store has no rename. A folder is published by its manifest, which is written last and after the sizes of all
other files were compared: it is whole, or it has no manifest.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from medr1_ray.base.deadline import while_moving
from medr1_ray.base.manifest import MANIFEST_FILE, find_damage, parse_manifest
from medr1_ray.config import Config

T = TypeVar("T")


class StorageError(ValueError):
    """A request to the storage failed, or was not answered in time."""


@dataclass(frozen=True)
class Storage:
    """The files below `run.storage`; names are relative to it, with slashes.

    A missing one is None or empty where it is read. Everything else that goes wrong raises StorageError.
    """

    url: str
    _system: Any
    _root: str
    _seconds: float

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """Return the storage of a run; None where it has none. Asks nothing of it yet.

        Raises:
            ValueError: the protocol's package is not installed, or the URL is a folder around `run.dir` or in it.
        """
        url = config.run.storage
        if url is None:
            return None
        import fsspec
        from fsspec.implementations.local import LocalFileSystem
        from fsspec.implementations.memory import MemoryFileSystem

        try:
            # Listings that are remembered would not show what another machine wrote.
            system, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        # Some protocols look their host up at once; errors have no common base.
        except Exception as error:
            extra = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}.get(url.partition("://")[0])
            install = f"pip install '.[{extra}]'" if extra else "install its fsspec package, or use s3://, gs://, file://"
            raise ValueError(f"run.storage={url!r} cannot be used ({error}); {install}") from None
        if type(system) is MemoryFileSystem:
            raise ValueError(f"run.storage={url!r} is this process's memory and goes with it; use s3://, gs://, file://")
        if isinstance(system, LocalFileSystem):
            folder, here = Path(root).resolve(), config.run.dir.resolve()
            if folder.is_relative_to(here) or here.is_relative_to(folder):
                raise ValueError(
                    f"run.storage={url!r} and run.dir={str(config.run.dir)!r} lie one in the other; give a folder on "
                    "another disk"
                )
            system = _local_files()
        return cls(url, system, root.rstrip("/"), config.run.storage_timeout_seconds)

    def rehearse(self) -> None:
        """Write, read and delete a small file. Raises ValueError where that is not possible."""
        name, content = f".rehearsal-{uuid.uuid4().hex}", b"may be deleted"
        try:
            self.write(name, content)
            if self.read(name) != content:
                raise StorageError(f"{self}: what was written is not what is read")
            self.delete(name)
        except StorageError as error:
            raise ValueError(
                f"{error}. A run writes, reads, lists and deletes there; look at the bucket's name, its permissions "
                "and the credentials in the environment"
            ) from None

    def read(self, name: str) -> bytes | None:
        def call(_: object) -> bytes | None:
            try:
                content: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

        return self._do(f"reading {name}", call)

    def write(self, name: str, content: bytes) -> None:
        def call(_: object) -> int:
            self._system.pipe_file(self._path(name), content)
            return int(self._system.info(self._path(name))["size"])

        size = self._do(f"writing {name}", call)
        if size != len(content):
            raise StorageError(f"{self}: {name} has {size:,} bytes there and {len(content):,} here")

    def sizes(self, below: str) -> dict[str, int]:
        """Return the names of all files below a folder, with their sizes in bytes."""

        def call(_: object) -> dict[str, int]:
            try:
                found = self._system.find(self._path(below), detail=True)
            except FileNotFoundError:
                return {}
            return {name.removeprefix(f"{self._root}/"): int(each["size"] or 0) for name, each in found.items()}

        return self._do(f"listing {below}", call)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; one that is not there is no error."""

        def call(_: object) -> None:
            with suppress(FileNotFoundError):
                self._system.rm(self._path(name), recursive=True)

        self._do(f"deleting {name}", call)

    def delete_folder(self, name: str) -> None:
        """Delete a folder: its manifest first, so that no half of it counts."""
        self.delete(f"{name}/{MANIFEST_FILE}")
        self.delete(name)

    def upload(self, folder: Path, name: str) -> None:
        """Copy the files of a folder's manifest, then that. What there was under this name is gone."""
        manifest = (folder / MANIFEST_FILE).read_bytes()
        self.delete_folder(name)
        # A storage that does not answer is found by a small one.
        for file in sorted(parse_manifest(manifest), key=lambda file: file.bytes):
            there = self._path(f"{name}/{file.name}")
            self._copy(f"uploading {file.name}", self._system.put_file, str(folder / file.name), there)
        self.publish(name, manifest)

    def publish(self, name: str, manifest: bytes) -> None:
        """Write the manifest of a folder whose other files are there; their sizes are compared before."""
        there = self.sizes(name)
        for file in parse_manifest(manifest):
            if there.get(f"{name}/{file.name}") != file.bytes:
                size = there.get(f"{name}/{file.name}", 0)
                raise StorageError(f"{self}: {name}/{file.name} has {size:,} bytes there and {file.bytes:,} here")
        self.write(f"{name}/{MANIFEST_FILE}", manifest)

    def download(self, name: str, folder: Path) -> str | None:
        """Copy a folder to a new one here and compare every byte; returns what is wrong with it, None where nothing
        is."""
        content = self.read(f"{name}/{MANIFEST_FILE}")
        if content is None:
            return f"{MANIFEST_FILE} is missing"
        try:
            files = parse_manifest(content)
        except ValueError as error:
            return str(error)
        there = self.sizes(name)
        for file in files:
            size = there.get(f"{name}/{file.name}")
            if size is None:
                return f"{file.name} is missing"
            if size != file.bytes:
                return f"{file.name} has {size:,} bytes and was written with {file.bytes:,}"
        folder.mkdir(parents=True)
        for file in files:
            here = folder / file.name
            here.parent.mkdir(parents=True, exist_ok=True)
            self._copy(f"downloading {file.name}", self._system.get_file, self._path(f"{name}/{file.name}"), str(here))
        (folder / MANIFEST_FILE).write_bytes(content)
        return find_damage(folder)

    def __str__(self) -> str:
        return f"run.storage={self.url!r}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _copy(self, what: str, copy: Callable[..., object], source: str, target: str) -> None:
        self._do(what, lambda each: copy(source, target, callback=each))

    def _do(self, what: str, call: Callable[[Any], T]) -> T:
        """Run a request that gets a callback of fsspec's, by which it says that it gets on."""
        from fsspec.callbacks import Callback

        try:
            return while_moving(self._seconds, what, lambda moved: call(Callback(hooks={"moved": moved})))
        except TimeoutError as error:
            raise StorageError(f"{self}: {error} (run.storage_timeout_seconds)") from None
        # Whatever a protocol's package raises: its errors have no common base.
        except Exception as error:
            said = " ".join(str(error).split())[:300] or "without a message"
            raise StorageError(f"{self}: {what} failed: {type(error).__name__}: {said}") from None


def _local_files() -> Any:
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.spec import AbstractFileSystem

    class LocalFiles(LocalFileSystem):  # type: ignore[misc]
        """Copies in blocks: fsspec's own copies a file at once, and a large one would say nothing for minutes."""

        put_file = AbstractFileSystem.put_file
        get_file = AbstractFileSystem.get_file

    return LocalFiles(auto_mkdir=True, skip_instance_cache=True)
