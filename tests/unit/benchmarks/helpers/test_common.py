"""What all benchmarks share: sides that take turns."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.helpers.common import interleaved


def test_sides_run_in_turns_and_swap_their_order() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    found = interleaved({"a": side("a"), "b": side("b")}, rounds=2, warm_up=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
