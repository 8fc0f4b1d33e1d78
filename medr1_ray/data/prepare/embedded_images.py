"""Writing the images that a table holds itself to files, once each."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped]

from medr1_ray.base.atomic_files import publish
from medr1_ray.data.images import IMAGE_FORMATS
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.table.reader import TableReader


def write_embedded(
    reader: TableReader, wanted: set[tuple[str, int]], folder: Path
) -> dict[tuple[str, int], str | RowError]:
    """Write the images of the rows `wanted`, by file and row, into `folder`.

    Returns the name of each row's file in `folder`, or why it has none. Files are named after their content, so equal
    images are written once, and those of an earlier call are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[tuple[str, int], str | RowError] = {}
    quiet = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=len(wanted), desc="writing images", unit="image", mininterval=quiet) as bar:
        for file, row, content in reader.images(wanted):
            names[file, row] = content if isinstance(content, RowError) else _write(content, folder)
            bar.update()
    return names


def _write(content: bytes, folder: Path) -> str:
    path = folder / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}{_suffix(content)}"
    if not path.exists():
        with publish(path) as partial:
            partial.write_bytes(content)
    return path.name


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            return f".{str(image.format).lower()}"
    except Exception:  # of many types; the check of the file will say what is wrong with it
        return ".bin"
