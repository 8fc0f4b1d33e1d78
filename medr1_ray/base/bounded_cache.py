"""A least-recently-used cache bounded by the total size of its values in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """An LRU cache whose values take at most `limit_bytes` in total; a single value may be larger."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        # Not locked: a cache is used by one thread at a time.
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, make: Callable[[], V], size_bytes: int) -> V:
        """Return the value under `key`; on a miss, make it and evict what was used least recently."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][0]
        value = make()
        self._values[key] = (value, size_bytes)
        self._bytes += size_bytes
        # The new value is never evicted, even if it exceeds the limit on its own.
        while self._bytes > self._limit_bytes and len(self._values) > 1:
            self._bytes -= self._values.popitem(last=False)[1][1]
        return value
