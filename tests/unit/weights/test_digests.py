"""Fingerprints find what goes wrong in transport; deadlines end what would wait for ever."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from medr1_ray.base.deadline import ended_by, within
from medr1_ray.weights import digests as module
from medr1_ray.weights.digests import digest_of, fingerprint


def test_a_fingerprint_is_the_sum_of_products_of_keyed_words_modulo_2_to_the_64() -> None:
    words = [3, -5, 2**31 - 1, 7, 11]
    key = module._key(torch.device("cpu"))[:5].tolist()
    a, b, c, d, e = (word + k for word, k in zip(words, key, strict=True))
    expected = (a * c + b * d + e) % 2**64
    (found,) = fingerprint(torch.tensor(words, dtype=torch.int32)).tolist()
    assert found % 2**64 == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_any_single_bit_and_any_exchange_is_found(dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 41).to(dtype)
    raw = tensor.view(torch.uint8)
    seen = {digest_of([("w", tensor)])}
    for i in range(raw.numel()):
        for bit in range(8):
            raw[i] ^= 1 << bit
            seen.add(digest_of([("w", tensor)]))
            raw[i] ^= 1 << bit
    for i in range(39):
        order = [*range(i), i + 1, i, *range(i + 2, 40)]
        seen.add(digest_of([("w", tensor[order])]))
    assert len(seen) == 1 + 8 * raw.numel() + 39


def test_names_order_and_shape_count() -> None:
    one, other = torch.arange(6.0), torch.ones(2)
    seen = {
        digest_of([("a", one), ("b", other)]),
        digest_of([("b", other), ("a", one)]),
        digest_of([("b", one), ("a", other)]),
        digest_of([("a", one.reshape(2, 3)), ("b", other)]),
        digest_of([("a", one)]),
    }
    assert len(seen) == 5


def test_pieces_count_in_their_order_and_layout_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_WORDS", 4)
    tensor = torch.arange(12.0)
    swapped = torch.cat([tensor[4:8], tensor[:4], tensor[8:]])
    assert fingerprint(tensor).shape == (3,)
    assert digest_of([("w", tensor)]) != digest_of([("w", swapped)])
    square = torch.arange(16.0).reshape(4, 4)
    assert fingerprint(square.T).tolist() == fingerprint(square.T.contiguous()).tolist()
    assert fingerprint(torch.zeros(0, 4)).tolist() == [0]


def test_a_body_that_waits_is_ended_and_told_from_one_that_failed() -> None:
    release = threading.Event()
    late = pytest.raises(TimeoutError, match=r"waiting did not end within 0\.05 seconds")
    with late, ended_by(0.05, "waiting", release.set):
        assert release.wait(20)

    def fail_when_ended() -> None:
        release.clear()
        release.wait(20)
        raise RuntimeError("aborted")

    with pytest.raises(TimeoutError) as caught, ended_by(0.05, "waiting", release.set):
        fail_when_ended()
    assert str(caught.value.__cause__) == "aborted"
    ended: list[str] = []
    with pytest.raises(RuntimeError, match="of its own"), ended_by(20, "failing", lambda: ended.append("x")):
        raise RuntimeError("of its own")
    with ended_by(20, "being quick", lambda: ended.append("x")):
        pass
    time.sleep(0.01)
    assert ended == []


def test_a_call_that_cannot_be_ended_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError, match="joining did not end"):
        within(0.05, "joining", lambda: release.wait(20))
    release.set()
    assert within(20, "answering", lambda: 7) == 7
    assert within(20, "answering", lambda: None) is None

    def fail() -> None:
        raise ValueError("wrong address")

    with pytest.raises(ValueError, match="wrong address"):
        within(20, "failing", fail)
