"""What was used least recently leaves a full cache first."""

from __future__ import annotations

import pytest

from medr1_ray.base.bounded_cache import BoundedCache


def test_what_was_used_last_stays() -> None:
    cache: BoundedCache[str] = BoundedCache(limit_bytes=10)
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    for key in ["a", "b", "a", "c", "b", "a"]:
        assert cache.get(key, lambda key=key: make(key), size_bytes=5) == key.upper()  # type: ignore[misc]
    # Two fit: c evicts b (a was used later), then b evicts a, and a evicts c.
    assert made == ["a", "b", "c", "b", "a"]
    assert len(cache) == 2


def test_a_value_above_the_limit_is_kept_alone() -> None:
    cache: BoundedCache[str] = BoundedCache(limit_bytes=10)
    cache.get("a", lambda: "a", 5)
    cache.get("large", lambda: "large", 50)
    assert len(cache) == 1
    assert cache.get("large", lambda: pytest.fail("made again"), 50) == "large"
    # With a small value after it the large one goes, and its bytes are free again: two small ones fit.
    cache.get("b", lambda: "b", 5)
    cache.get("c", lambda: "c", 5)
    assert len(cache) == 2
    assert cache.get("b", lambda: pytest.fail("made again"), 5) == "b"
