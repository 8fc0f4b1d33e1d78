"""What was used least recently leaves a full cache first."""

from __future__ import annotations

import pytest

from medr1_ray.base.bounded_cache import BoundedCache


def five(value: str) -> int:
    return 5


def test_what_was_used_last_stays() -> None:
    cache: BoundedCache[str] = BoundedCache(limit_bytes=10)
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    for key in ["a", "b", "a", "c", "b", "a"]:
        assert cache.get(key, lambda key=key: make(key), size_bytes=lambda _: 5) == key.upper()  # type: ignore[misc]
    # Two fit: c evicts b (a was used later), then b evicts a, and a evicts c.
    assert made == ["a", "b", "c", "b", "a"]
    assert len(cache) == 2


def test_a_value_above_the_limit_is_kept_alone() -> None:
    cache: BoundedCache[str] = BoundedCache(limit_bytes=10)
    cache.get("a", lambda: "a", five)
    cache.get("large", lambda: "large", lambda _: 50)
    assert len(cache) == 1
    assert cache.get("large", lambda: pytest.fail("made again"), five) == "large"
    # With a small value after it the large one goes, and its bytes are free again: two small ones fit.
    cache.get("b", lambda: "b", five)
    cache.get("c", lambda: "c", five)
    assert len(cache) == 2
    assert cache.get("b", lambda: pytest.fail("made again"), five) == "b"


def asked_for(cache: BoundedCache[str], *keys: str) -> list[str]:
    """The keys whose values had to be made."""
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key

    for key in keys:
        cache.get(key, lambda key=key: make(key), five)  # type: ignore[misc]
    return made


def test_a_scan_over_more_than_fits_finds_nothing_unless_it_is_kept() -> None:
    cache: BoundedCache[str] = BoundedCache(limit_bytes=10)
    assert asked_for(cache, *"abcabc") == list("abcabc")
    cache.keep("abc")
    assert asked_for(cache, *"abcabc") == ["a"], "b and c were still there"
    # What is not to be kept has no room beside them, but for the newest.
    assert asked_for(cache, "d", "e", "d") == ["d", "e", "d"]
    assert asked_for(cache, *"abc") == []
    assert len(cache) == 4


def test_what_turned_out_to_be_none_is_forgotten() -> None:
    cache: BoundedCache[str] = BoundedCache(limit_bytes=10)
    cache.keep("a")
    asked_for(cache, *"ab")
    for key in "abc":
        cache.drop(key)
    assert len(cache) == 0
    assert asked_for(cache, *"bcb") == ["b", "c"], "with its bytes: two fit again"


def test_what_is_kept_no_longer_leaves_in_its_turn() -> None:
    cache: BoundedCache[str] = BoundedCache(limit_bytes=10)
    cache.keep("abc")
    asked_for(cache, *"abc")
    cache.keep("cd")
    assert len(cache) == 2, "two fit, of which one is kept; a went first"
    assert asked_for(cache, *"bcd") == ["d"]
    assert asked_for(cache, *"cd") == []
    cache.keep(())
    assert len(cache) == 2
