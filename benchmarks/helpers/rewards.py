"""Arbitrary rewards for models that know nothing: `parity` is always the same for the same text, `coin` is not."""

from __future__ import annotations

import random
import zlib
from typing import Any


def parity(completion: str, question: Any = None, mode: Any = None) -> float:
    """Return 0 or 1, the parity of the text's checksum."""
    return float(zlib.crc32(completion.encode()) % 2)


def coin(completion: str, question: Any = None, mode: Any = None) -> float:
    """Return 0 or 1 by chance, so that the groups of a model that knows nothing have advantages."""
    return float(random.random() < 0.5)
