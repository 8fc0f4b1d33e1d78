"""The reward of both sides of a benchmark: arbitrary, but always the same for the same text."""

from __future__ import annotations

import zlib
from typing import Any


def parity(completion: str, question: Any = None, mode: Any = None) -> float:
    """Return 0 or 1, the parity of the text's checksum."""
    return float(zlib.crc32(completion.encode()) % 2)
