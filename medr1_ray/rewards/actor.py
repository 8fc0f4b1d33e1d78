"""The Ray actor that scores groups. Created with `ray.remote(RewardActor).options(...).remote(...)`."""

from __future__ import annotations

import faulthandler
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from medr1_ray.rewards.functions import (
    RewardError,
    RewardFunction,
    WeightedReward,
    punish_overlong,
    resolve,
    score,
)
from medr1_ray.types import Mode, Question, Rewards

GRACE_SECONDS = 5.0
CALL_SECONDS = 1.0
"""Others can have what an actor has not scored by then, and one that answers nothing is noticed."""


@dataclass(frozen=True)
class ScoreRequest:
    """A group to score: `texts` [G], and `lengths` int32 [G] in tokens. `judge_only` calls no reward function: an
    evaluation asks what is correct and well-formed."""

    prompt_id: str
    texts: tuple[str, ...]
    lengths: NDArray[np.int32]
    question: Question
    judge_only: bool = False


class _TimeIsUp(BaseException):
    """Not an Exception, so that a reward function's own `except Exception` does not swallow it."""


class RewardActor:
    """Scores groups one after the other, each under limits of time and memory.

    Consumes texts and lengths, produces `Rewards`, waits for nothing.

    The time limit covers one group. Ray runs an actor's methods on its process's main thread, where an alarm
    signal interrupts pure Python (regular expressions too): the call fails with a RewardError and the actor goes on.
    The alarm repeats every second, for functions that swallow every exception. Code that does not react even then (a
    call into C that ignores signals) is ended with its process `GRACE_SECONDS` after the limit: the caller gets Ray's
    ActorDiedError, and the actor's error log says where it hung.

    The memory limit is on what the process holds beyond its state after the start. An allocation past it raises
    MemoryError, of which the call makes a RewardError.

    Args:
        functions: `reward.functions`, name to weight.
        overlong_buffer_tokens, max_tokens: `reward.overlong_buffer_tokens` and `rollout.max_tokens`.
        timeout_seconds: `reward.timeout_seconds`, for one group.
        memory_gib: `reward.memory_gib`.
        path: folders in which modules are found besides those of this process: the driver's PYTHONPATH.

    Raises ValueError where a reward function cannot be found.
    """

    def __init__(
        self,
        functions: dict[str, float],
        mode: Mode,
        *,
        overlong_buffer_tokens: int,
        max_tokens: int,
        timeout_seconds: float,
        memory_gib: float,
        name: str,
        path: Sequence[str] = (),
    ) -> None:
        # First, because Ray asks for the name of an actor whose start failed.
        self._name = name
        # At the end: whatever this process has already stays what it imports.
        sys.path += [folder for folder in path if folder not in sys.path]
        self._functions = tuple(
            WeightedReward(reward.name, reward.weight, self._watched(reward))
            for reward in resolve(functions, mode)
        )
        self._mode: Mode = mode
        self._overlong_buffer_tokens = overlong_buffer_tokens
        self._max_tokens = max_tokens
        self._timeout_seconds = timeout_seconds
        self._memory_gib = memory_gib
        self._data_bytes_at_start = _data_bytes()
        self._running = "", ""

    def __repr__(self) -> str:
        return self._name

    def ping(self) -> str:
        """The actor's name, as a sign of life."""
        return self._name

    def score(self, requests: Sequence[ScoreRequest]) -> list[Rewards | RewardError]:
        """The rewards of the first of these groups, of as many as are scored within `CALL_SECONDS` and one at least; or
        the error, where a reward function fails, returns something other than a finite number, or exceeds a limit.

        Raises ValueError where the actor was created with `max_concurrency`, which runs this outside the main thread.
        """
        end = time.monotonic() + CALL_SECONDS
        found: list[Rewards | RewardError] = []
        for request in requests:
            found.append(self._score_or_error(request))
            if time.monotonic() > end:
                break
        return found

    def _score_or_error(self, request: ScoreRequest) -> Rewards | RewardError:
        try:
            return self._score(request)
        except RewardError as error:
            # Without its traceback, whose frames hold what no other process needs.
            return error.with_traceback(None)

    def _score(self, request: ScoreRequest) -> Rewards:
        limit = self._timeout_seconds
        signal.signal(signal.SIGALRM, _raise_time_is_up)
        # faulthandler needs a file descriptor, which a replaced `sys.stderr` may not have.
        error_log = sys.__stderr__ or sys.stderr
        # A thread in C, which works even where the alarm cannot interrupt the Python code.
        faulthandler.dump_traceback_later(limit + GRACE_SECONDS, exit=True, file=error_log)
        try:
            with self._limited_memory():
                signal.setitimer(signal.ITIMER_REAL, limit, 1.0)
                try:
                    functions = () if request.judge_only else self._functions
                    rewards = score(
                        request.prompt_id, request.texts, request.question, self._mode, functions, self._name
                    )
                    return punish_overlong(rewards, request.lengths, self._max_tokens, self._overlong_buffer_tokens)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        except _TimeIsUp:
            # Again, because the alarm may have interrupted the line above before it took effect.
            signal.setitimer(signal.ITIMER_REAL, 0)
            function, completion = self._running
            raise RewardError(
                f"reward function {function!r} was still scoring prompt {request.prompt_id!r} when the group's "
                f"time limit, reward.timeout_seconds={limit:g}, ran out; make it faster or raise the limit",
                function,
                completion,
            ) from None
        except RewardError as error:
            if not isinstance(error.__cause__, MemoryError):
                raise
            raise RewardError(
                f"{error}; the limit is reward.memory_gib={self._memory_gib:g}", error.function, error.completion
            ) from None
        finally:
            faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def _limited_memory(self) -> Iterator[None]:
        before, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = self._data_bytes_at_start + int(self._memory_gib * 2**30)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (before, hard))

    def _watched(self, reward: WeightedReward) -> RewardFunction:
        def call(completion: str, question: Question, mode: Mode) -> float:
            self._running = reward.name, completion
            return reward.function(completion, question, mode)

        return call


def _raise_time_is_up(number: int, frame: FrameType | None) -> None:
    raise _TimeIsUp


def _data_bytes() -> int:
    """The private memory that the kernel counts against RLIMIT_DATA: not the object store, which is shared."""
    found = re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
