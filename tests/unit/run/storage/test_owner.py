"""A second run is kept away from a storage while the first lives, and not for ever after it died."""

from __future__ import annotations

import json
import os
import time

import pytest

from medr1_ray.run.storage.objects import Storage, StorageError
from medr1_ray.run.storage.owner import DEAD_SECONDS, OWNER_FILE, Owner, require_unowned
from tests.faults.storage import FaultyFiles, files, storage

__all__ = ["files", "storage"]


class Waiting:
    """Time that passes without waiting; `meanwhile` is what the other one does in it."""

    def __init__(self, meanwhile: object = None) -> None:
        self.seconds = 0.0
        self._meanwhile = meanwhile

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds
        if callable(self._meanwhile):
            self._meanwhile()


def a_sign(storage: Storage, seconds_ago: float) -> None:
    sign = {"run": "r", "host": "spot-1", "pid": 12, "time": time.time() - seconds_ago}
    storage.write(OWNER_FILE, json.dumps(sign).encode())


def test_a_storage_of_a_living_process_is_refused(storage: Storage) -> None:
    waiting = Waiting(lambda: a_sign(storage, 5))
    a_sign(storage, 20)
    said: list[str] = []
    with pytest.raises(ValueError, match="is in use by process 12 on spot-1; wait for it, stop it, or choose another"):
        require_unowned(storage, said.append, waiting)
    assert len(said) == 1
    assert waiting.seconds < DEAD_SECONDS, "the first sign of life is enough"


def test_a_dead_one_is_waited_for_and_taken_over(storage: Storage) -> None:
    waiting = Waiting()
    a_sign(storage, 20)
    require_unowned(storage, lambda line: None, waiting)
    assert waiting.seconds == DEAD_SECONDS
    assert storage.read(OWNER_FILE) is None, "so that it is waited for once"


def test_one_that_ends_in_the_meantime_is_not_waited_for_any_longer(storage: Storage) -> None:
    waiting = Waiting(lambda: storage.delete(OWNER_FILE))
    a_sign(storage, 20)
    require_unowned(storage, lambda line: None, waiting)
    assert waiting.seconds < DEAD_SECONDS


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": 1}'])
def test_a_sign_that_cannot_be_read_is_none(storage: Storage, content: bytes) -> None:
    storage.write(OWNER_FILE, content)
    waiting, said = Waiting(), list[str]()
    require_unowned(storage, said.append, waiting)
    assert (waiting.seconds, said) == (0.0, [])


def test_long_dead_ones_cost_no_time(storage: Storage) -> None:
    waiting = Waiting()
    a_sign(storage, 4000)
    require_unowned(storage, print, waiting)
    assert waiting.seconds == 0.0


def test_it_gives_signs_of_life_while_it_lives(storage: Storage, files: type[FaultyFiles]) -> None:
    def sign() -> dict[str, object]:
        return dict(json.loads(storage.read(OWNER_FILE) or b"{}"))

    with Owner(storage, sign_seconds=0.01) as owner:
        first = sign()
        assert first["pid"] == os.getpid()
        owner.require()
        deadline = time.monotonic() + 30
        while sign()["time"] == first["time"]:
            assert time.monotonic() < deadline
        # A storage that fails for a while ends nothing.
        files.set("refuse")
        while files.changes < 2:
            assert time.monotonic() < deadline
        files.set()
    assert storage.read(OWNER_FILE) is None


def test_one_that_was_taken_over_notices_and_leaves_the_other_alone(storage: Storage) -> None:
    with Owner(storage) as first:
        with Owner(storage) as second:
            second.require()
            with pytest.raises(StorageError, match=r"is in use by process \d+ on .* now, which took it over"):
                first.require()
        first.require()
        a_sign(storage, 0)
    assert storage.read(OWNER_FILE) is not None
