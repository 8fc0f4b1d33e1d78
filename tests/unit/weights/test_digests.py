"""Fingerprints find what goes wrong in transport."""

from __future__ import annotations

import pytest
import torch

from medr1_ray.weights import digests as module
from medr1_ray.weights.digests import digest_of, fingerprint


def test_a_fingerprint_is_the_sum_of_products_of_keyed_words_modulo_2_to_the_64() -> None:
    words = [3, -5, 2**31 - 1, 7, 11]
    key = module._key(torch.device("cpu"))[:5].tolist()
    a, b, c, d, e = (word + k for word, k in zip(words, key, strict=True))
    expected = (a * c + b * d + e) % 2**64
    (found,) = fingerprint(torch.tensor(words, dtype=torch.int32)).tolist()
    assert found % 2**64 == expected


def test_every_process_has_the_same_key_whatever_it_drew_before(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        monkeypatch.setattr(module, "_keys", {})  # as in a new process
        found.append(digest_of([("w", torch.arange(6.0))]))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_any_single_bit_and_any_exchange_is_found(dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 21).to(dtype)
    raw = tensor.view(torch.uint8)
    seen = {digest_of([("w", tensor)])}
    for i in range(raw.numel()):
        for bit in range(8):
            raw[i] ^= 1 << bit
            seen.add(digest_of([("w", tensor)]))
            raw[i] ^= 1 << bit
    for i in range(19):
        order = [*range(i), i + 1, i, *range(i + 2, 20)]
        seen.add(digest_of([("w", tensor[order])]))
    assert len(seen) == 1 + 8 * raw.numel() + 19


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
