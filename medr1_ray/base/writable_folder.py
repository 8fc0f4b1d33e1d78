"""Whether a folder can be made and written, found out before the results that go there are paid for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def require_writable(given: str, folder: Path) -> None:
    """Check that a folder is there and can be written, or can be made; leaves nothing.

    `given` is what the user gave, for the error: `--out x`.

    Raises:
        ValueError: it can not.
    """
    folder = folder.absolute()
    # A link to itself, or to what is not there, does not exist, yet stands in the way.
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not there.exists():
        raise ValueError(f"{given} cannot be made: {there} is a link that leads nowhere; choose another folder")
    if not there.is_dir():
        raise ValueError(f"{given} cannot be made: {there} is a file; choose another folder")
    try:
        # Tried, because permissions do not tell: they say nothing to root, nor of what a file system allows.
        os.rmdir(tempfile.mkdtemp(dir=there, prefix=".medr1_ray-"))
    except OSError as error:
        raise ValueError(
            f"{given} cannot be made: {there} cannot be written ({error.strerror}); choose another folder"
        ) from None
