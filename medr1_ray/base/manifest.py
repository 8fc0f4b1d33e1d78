"""The manifest of a folder: its files with sizes and SHA-256 digests, so that a later reader knows that all are whole.

    {"files": {"model.safetensors": {"bytes": 1864, "sha256": "9f86d0…"}, …}}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

MANIFEST_FILE = "manifest.json"
# Digests release Python's lock; more readers than this do not make a disk faster.
_READERS = 8


class NotSavedError(ValueError):
    """Files could not be written, for want of room or permission; what was there before is as it was."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a folder: its path below the folder, its size, and the digest of its content in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def store(folder: Path, name: str) -> StoredFile:
    """Bring a file that was written to the disk (fsync), and return what it holds. It may be read by whom its folder
    may be."""
    path = folder / name
    # Safetensors' files are their owner's alone, whatever the umask.
    path.chmod(folder.stat().st_mode & 0o666)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return StoredFile(name, path.stat().st_size, _digest(path))


def write_manifest(folder: Path, files: Iterable[StoredFile]) -> None:
    """Write the manifest and bring it, and the names of all files, to the disk."""
    files = list(files)
    path = folder / MANIFEST_FILE
    with path.open("w", encoding="utf-8") as opened:
        opened.write(manifest_text(files))
        opened.flush()
        os.fsync(opened.fileno())
    for each in {folder, *(folder / file.name for file in files)}:
        sync_folder(each if each.is_dir() else each.parent)


def manifest_text(files: Iterable[StoredFile]) -> str:
    """Return the content of a manifest."""
    content = {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in files}
    return json.dumps({"files": content}, indent=1) + "\n"


def parse_manifest(content: bytes) -> list[StoredFile]:
    """Return the files that a manifest names. Raises ValueError, in a few words, where it is damaged or names a file
    outside of its folder."""
    try:
        named = json.loads(content)["files"]
        files = [StoredFile(name, int(of["bytes"]), str(of["sha256"])) for name, of in named.items()]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ValueError(f"{MANIFEST_FILE} cannot be read") from None
    outside = [file.name for file in files if Path(file.name).is_absolute() or ".." in Path(file.name).parts]
    if outside:
        raise ValueError(f"{MANIFEST_FILE} names {outside[0]}, which is outside of the folder")
    return files


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_damage(folder: Path, but: str | None = None) -> str | None:
    """Return what is wrong with a folder that has a manifest, in a few words; None where every file is as written.

    Reads all files, except those below the subfolder `but`. Files that the manifest does not name are ignored.
    """
    try:
        files = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except OSError:
        return f"{MANIFEST_FILE} cannot be read"
    except ValueError as error:
        return str(error)
    files = [file for file in files if but is None or Path(file.name).parts[0] != but]
    # Sizes first: they cost nothing, and a file that was cut off is the usual damage.
    cut_off = next((damage for file in files if (damage := _size_damage(folder, file))), None)
    if cut_off:
        return cut_off
    with ThreadPoolExecutor(_READERS) as readers:
        return next((damage for damage in readers.map(partial(_content_damage, folder), files) if damage), None)


def _size_damage(folder: Path, file: StoredFile) -> str | None:
    path = folder / file.name
    if not path.is_file():
        return f"{file.name} is missing"
    size = path.stat().st_size
    return None if size == file.bytes else f"{file.name} has {size:,} bytes and was written with {file.bytes:,}"


def _content_damage(folder: Path, file: StoredFile) -> str | None:
    try:
        same = _digest(folder / file.name) == file.sha256
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    return None if same else f"{file.name} has other bytes than were written"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
