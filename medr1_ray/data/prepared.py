"""A prepared dataset on disk: the manifest, its splits with their leakage, and an account of what was left out.

`prepared.json` (where the images are, counts, digest), `manifest.parquet`, `splits/<name>.json`, and `images.jsonl`,
what `prepare` knows of each image file when it is run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medr1_ray.data.leakage import Leakage
from medr1_ray.data.manifest import ManifestRow, digest_of, read_manifest, write_manifest
from medr1_ray.data.reading import Dropped
from medr1_ray.data.recipes import PARTS, Split, split_digest
from medr1_ray.types import Question

VERSION = 1
_EXAMPLES = 5
_COMMAND = "python -m medr1_ray.data.prepare"


@dataclass(frozen=True)
class PreparedSplit:
    """The questions of a split by part (`train`, `validation`, `test`), and the rows that the manifest left out."""

    parts: dict[str, tuple[Question, ...]]
    digest: str
    dropped: tuple[Dropped, ...]


def write_prepared(folder: Path, root: Path, rows: Sequence[ManifestRow]) -> dict[str, Any]:
    """Write the manifest and `prepared.json` of the dataset at `root`; returns what the latter says.

    Splits of an earlier manifest are removed.
    """
    for split in (folder / "splits").glob("*.json"):
        split.unlink()
    write_manifest(folder, rows)
    account: dict[str, Any] = {
        "version": VERSION,
        "root": str(root.absolute()),
        "digest": digest_of(rows),
        "rows": len(rows),
        "questions": sum(row.left_out is None for row in rows),
        "images": len({row.image_path for row in rows if row.left_out is None}),
        "left_out": _by_reason({row.id: row.left_out for row in rows if row.left_out}),
        "remarks": _by_reason({row.id: row.remark for row in rows if row.remark and not row.left_out}),
    }
    _write_json(folder / "prepared.json", account)
    return account


def write_split(
    folder: Path, split: Split, rows: Sequence[ManifestRow], leakages: Mapping[str, Leakage | None]
) -> str:
    """Write `splits/<name>.json`; returns the digest of its content."""
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


def read_split(folder: Path, name: str) -> PreparedSplit:
    """Read a split of a prepared dataset.

    Raises:
        ValueError: if the folder is not a prepared dataset, its images are no longer there, it has no such split, or
            the split does not fit the manifest.
    """
    account = _read_json(folder / "prepared.json", f"give a folder that `{_COMMAND}` wrote")
    if account.get("version") != VERSION:
        raise ValueError(f"data.root={folder} was written by another version; run `{_COMMAND}` again")
    root = Path(account["root"])
    if not root.is_dir():
        raise ValueError(
            f"data.root={folder}: its images were in {root}, which is no folder here; run `{_COMMAND} --root ... "
            f"--out {folder}` with the folder where they are now"
        )
    names = sorted(path.stem for path in (folder / "splits").glob("*.json"))
    if name not in names:
        raise ValueError(f"data.split={name}: {folder} has {', '.join(names) or 'no splits'}")
    content = _read_json(folder / "splits" / f"{name}.json", f"run `{_COMMAND}` again")
    rows = read_manifest(folder)
    by_id = {row.id: row for row in rows}
    ids: dict[str, tuple[str, ...]] = {part: tuple(content["parts"][part]) for part in PARTS}
    split = Split(name, content["recipe"], content["seed"], ids, content["left_out"])
    if not by_id.keys() >= {id_ for part in ids.values() for id_ in part} or (
        split_digest(split, rows) != content["digest"]
    ):
        raise ValueError(
            f"data.split={name}: it does not fit the manifest in {folder}, one of them was changed; run "
            f"`{_COMMAND}` again"
        )
    return PreparedSplit(
        parts={part: tuple(by_id[id_].question(root) for id_ in chosen) for part, chosen in ids.items()},
        digest=content["digest"],
        dropped=tuple(Dropped(row.file, row.row or 0, row.left_out) for row in rows if row.left_out),
    )


def _by_reason(reasons: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Counts with the first ids, most frequent reason first."""
    ids: dict[str, list[str]] = {}
    for id_, reason in reasons.items():
        ids.setdefault(reason, []).append(id_)
    return {
        reason: {"rows": len(found), "first": found[:_EXAMPLES]}
        for reason, found in sorted(ids.items(), key=lambda item: -len(item[1]))
    }


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {advice}") from error
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(path)
