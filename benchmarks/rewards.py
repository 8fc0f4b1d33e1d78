"""The reward that both sides of a benchmark give: by chance, but the same for the same text."""

from __future__ import annotations

import zlib
from typing import Any


def parity(completion: str, question: Any = None, mode: Any = None) -> float:
    """0 or 1 by the text's checksum."""
    return float(zlib.crc32(completion.encode()) % 2)
