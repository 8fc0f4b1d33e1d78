"""A least-recently-used cache bounded by the total size of its values in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """An LRU cache whose values take at most `limit_bytes` in total; a single value may be larger, and so may those to
    keep.

    Who goes through more values than fit, again and again in the same order, finds none of them in an LRU cache: each
    was evicted just before its turn. What a step needs is therefore kept by name (`keep`).
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        # Not locked: a cache is used by one thread at a time.
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._kept: dict[str, tuple[V, int]] = {}
        self._to_keep: Collection[str] = frozenset()

    def __len__(self) -> int:
        return len(self._values) + len(self._kept)

    def __contains__(self, key: object) -> bool:
        return key in self._values or key in self._kept

    def keep(self, keys: Collection[str]) -> None:
        """Evict no value under one of these keys, there now or made later, until the next call, which names others."""
        self._to_keep = frozenset(keys)
        for key in [key for key in self._kept if key not in self._to_keep]:
            self._values[key] = self._kept.pop(key)
        for key in [key for key in self._to_keep if key in self._values]:
            self._kept[key] = self._values.pop(key)
        self._evict()

    def drop(self, key: str) -> None:
        """Forget the value under `key`, if there is one: it turned out to be none."""
        for values in (self._kept, self._values):
            if key in values:
                self._bytes -= values.pop(key)[1]

    def get(self, key: str, make: Callable[[], V], size_bytes: Callable[[V], int]) -> V:
        """Return the value under `key`; on a miss, make it and evict what was used least recently."""
        if key in self._kept:
            return self._kept[key][0]
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][0]
        value = make()
        size = size_bytes(value)
        (self._kept if key in self._to_keep else self._values)[key] = (value, size)
        self._bytes += size
        self._evict(but=key)
        return value

    def _evict(self, but: str | None = None) -> None:
        # The new value is never evicted, even if it exceeds the limit on its own.
        while self._bytes > self._limit_bytes and self._values and next(iter(self._values)) != but:
            self._bytes -= self._values.popitem(last=False)[1][1]
