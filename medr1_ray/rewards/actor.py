"""The Ray actor that scores groups. Created with `ray.remote(RewardActor).options(...).remote(...)`."""

from __future__ import annotations

import faulthandler
import signal
import sys
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from medr1_ray.rewards.functions import RewardFunction, WeightedReward, punish_overlong, resolve, score
from medr1_ray.types import Mode, Question, Rewards

GRACE_SECONDS = 5.0


class _TimeIsUp(BaseException):
    """Not an Exception, so that a reward function's own `except Exception` does not swallow it."""


class RewardActor:
    """Scores one group per call, under a time limit. Consumes texts and lengths, produces `Rewards`, waits for nothing.

    The limit covers one `score` call. Ray runs an actor's methods on its process's main thread, where an
    alarm signal interrupts pure Python (regular expressions too): the call fails with a ValueError and the
    actor goes on. The alarm repeats every second, for functions that swallow every exception. Code that does not
    react even then (a call into C that ignores signals) is ended with its process `GRACE_SECONDS` after the limit:
    the caller gets Ray's ActorDiedError (ActorUnavailableError where the actor may restart), and the actor's
    error log says where it hung.

    Args:
        functions: `reward.functions`, name to weight.
        overlong_buffer_tokens, max_tokens: `reward.overlong_buffer_tokens` and `rollout.max_tokens`.
        timeout_seconds: `reward.timeout_seconds`, for one group.

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
        name: str,
    ) -> None:
        # First, because Ray asks for the name of an actor whose start failed.
        self._name = name
        self._functions = tuple(
            WeightedReward(reward.name, reward.weight, self._watched(reward))
            for reward in resolve(functions, mode)
        )
        self._mode: Mode = mode
        self._overlong_buffer_tokens = overlong_buffer_tokens
        self._max_tokens = max_tokens
        self._timeout_seconds = timeout_seconds
        self._running = ""

    def __repr__(self) -> str:
        return self._name

    def ping(self) -> str:
        """The actor's name, as a sign of life."""
        return self._name

    def score(
        self, prompt_id: str, texts: tuple[str, ...], lengths: NDArray[np.int32], question: Question
    ) -> Rewards:
        """Rewards of one prompt's completions: `texts` [G], and `lengths` int32 [G] in tokens.

        Raises ValueError where a reward function fails, returns something other than a finite number, or does not end
        in time; and in an actor created with `max_concurrency`, which would run this outside the main thread.
        """
        limit = self._timeout_seconds
        signal.signal(signal.SIGALRM, _raise_time_is_up)
        # faulthandler needs a file descriptor, which a replaced `sys.stderr` may not have.
        error_log = sys.__stderr__ or sys.stderr
        # A thread in C, which works even where the alarm cannot interrupt the Python code.
        faulthandler.dump_traceback_later(limit + GRACE_SECONDS, exit=True, file=error_log)
        try:
            signal.setitimer(signal.ITIMER_REAL, limit, 1.0)
            try:
                rewards = score(prompt_id, texts, question, self._mode, self._functions, self._name)
                return punish_overlong(rewards, lengths, self._max_tokens, self._overlong_buffer_tokens)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _TimeIsUp:
            # Again, because the alarm may have interrupted the line above before it took effect.
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise ValueError(
                f"reward function {self._running!r} was still scoring prompt {prompt_id!r} when the group's "
                f"time limit, reward.timeout_seconds={limit:g}, ran out; make it faster or raise the limit"
            ) from None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _watched(self, reward: WeightedReward) -> RewardFunction:
        def call(completion: str, question: Question, mode: Mode) -> float:
            self._running = reward.name
            return reward.function(completion, question, mode)

        return call


def _raise_time_is_up(number: int, frame: FrameType | None) -> None:
    raise _TimeIsUp
