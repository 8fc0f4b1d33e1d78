"""Writing of a prepared dataset; `readers/prepared.py` lists its files and reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from medr1_ray.base.atomic_files import publish, write_text
from medr1_ray.data.prepare.leakage import Leakage
from medr1_ray.data.readers.manifest import MANIFEST_FILE, ManifestRow, digest_of
from medr1_ray.data.readers.prepared import VERSION, Split, split_digest

_EXAMPLES = 5

SOURCE_FILE = ".source"
"""Says what a folder was prepared from, and that this command wrote it."""


def require_own_folder(folder: Path) -> None:
    """Check that a folder can be written without loss: it is new or empty, or this command wrote it earlier.

    Raises:
        ValueError: it is none of these.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a new folder, or one that this command wrote earlier")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and not names & {SOURCE_FILE, "prepared.json", "images.jsonl"}:
        raise ValueError(
            f"--out {folder} holds files that this command did not write, e.g. {min(names)}; give a new folder, or one "
            "that this command wrote earlier"
        )


def enter_folder(folder: Path, source: str) -> None:
    """Create the folder to write, and mark it; say so where something else was prepared there before.

    Raises:
        ValueError: it cannot be written.
    """
    mark = folder / SOURCE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = mark.read_text(encoding="utf-8").strip() if mark.exists() else source
        write_text(mark, source + "\n")
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written ({error.strerror}); choose another folder") from None
    if before != source:
        print(f"NOTE: {folder} has what was prepared from {before}; it is replaced")


@contextmanager
def nothing_left_of(error: type[Exception], folder: Path) -> Iterator[None]:
    """If the body raises `error`, remove what it has put into the folder, and the folder if it was not there."""
    there = folder.exists()
    before = set(folder.iterdir()) if there else set()
    try:
        yield
    except error:
        for path in set(folder.iterdir()) - before if folder.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not there and folder.exists():
            folder.rmdir()
        raise


def write_prepared(folder: Path, root: Path, rows: Sequence[ManifestRow]) -> dict[str, Any]:
    """Write the manifest and `prepared.json` of the dataset at `root`; return the content of the latter, `account_of`.

    Splits of an earlier manifest are removed.
    """
    # Before the new manifest: an interruption must not leave splits of another manifest next to it.
    for split in (folder / "splits").glob("*.json"):
        split.unlink()
    write_manifest(folder, rows)
    account = account_of(folder, root, rows)
    _write_json(folder / "prepared.json", account)
    return account


def account_of(folder: Path, root: Path, rows: Sequence[ManifestRow]) -> dict[str, Any]:
    """Return how many rows, questions and images there are, and what was left out why."""
    return {
        "version": VERSION,
        # Images in the folder itself move with it.
        "root": str(root.relative_to(folder) if root.is_relative_to(folder) else root.absolute()),
        "digest": digest_of(rows),
        "rows": len(rows),
        "questions": sum(row.left_out is None for row in rows),
        "images": len({row.image_path for row in rows if row.left_out is None}),
        "left_out": _by_reason({row.id: row.left_out for row in rows if row.left_out}),
        "remarks": _by_reason({row.id: row.remark for row in rows if row.remark and not row.left_out}),
    }


def write_split(
    folder: Path, split: Split, rows: Sequence[ManifestRow], leakages: Mapping[str, Leakage | None]
) -> str:
    """Write `splits/<name>.json`; return the digest of its content."""
    digest = split_digest(split, rows)
    (folder / "splits").mkdir(exist_ok=True)
    content = {
        "name": split.name,
        "recipe": split.recipe,
        "seed": split.seed,
        "digest": digest,
        "questions": {part: len(ids) for part, ids in split.parts.items()},
        "left_out": split.left_out,
        "leakage": {part: leak and asdict(leak) for part, leak in leakages.items()},
        "parts": split.parts,
    }
    _write_json(folder / "splits" / f"{split.name}.json", content)
    return digest


def _by_reason(reasons: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the number of rows and the first ids for each reason, most frequent reason first."""
    ids: dict[str, list[str]] = {}
    for id_, reason in reasons.items():
        ids.setdefault(reason, []).append(id_)
    return {
        reason: {"rows": len(found), "first": found[:_EXAMPLES]}
        for reason, found in sorted(ids.items(), key=lambda item: -len(item[1]))
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def write_manifest(folder: Path, rows: Sequence[ManifestRow]) -> None:
    """Write the rows to `folder / MANIFEST_FILE` (parquet), replacing an existing file in one step."""
    # Imported here because the import takes seconds.
    from datasets import Dataset, Features, List, Value, disable_progress_bars, enable_progress_bars

    types = {"row": Value("int32"), "width": Value("int32"), "height": Value("int32")}
    types |= {"options": List(Value("string"))}
    names = [field.name for field in fields(ManifestRow)]
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    features = Features({name: types.get(name, Value("string")) for name in names})
    disable_progress_bars()
    try:
        with publish(folder / MANIFEST_FILE) as partial:
            Dataset.from_dict(columns, features=features).to_parquet(partial)
    finally:
        enable_progress_bars()
