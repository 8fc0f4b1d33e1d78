"""Training prompts of a run: endless shuffled epochs, optionally weighted, resumable at the exact question."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as count_from
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from medr1_ray.data.encoding import Asked, Encoder, Refused
from medr1_ray.data.questions import shuffle_options
from medr1_ray.types import Prompt, Question

logger = logging.getLogger(__name__)

RESTING = "resting because of its pass rate"
AHEAD = 64
_PROMPT_ID = re.compile(r"(\d+)\.(\d+):(.*)", re.DOTALL)


@dataclass(frozen=True)
class StreamState:
    """Position of a stream: the next question is number `position` of the shuffled epoch `epoch`.

    `dropped` counts the skipped questions by reason. `digest` covers the questions in their order, the weights and
    whether options are shuffled. `resting` maps a question id to the epoch in which the question is skipped because of
    its pass rate.
    """

    seed: int
    digest: str
    epoch: int = 0
    position: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    resting: dict[str, int] = field(default_factory=dict)


class PromptStream:
    """Endless stream of prompts: each epoch holds every question once, in an order drawn from the seed and the epoch.

    With `weights` (of modalities and question types by name, 1 if not named) a question of weight w occurs w / mean
    weight times in an epoch: the integer part always, the fractional part at random. With `options_shuffled` each
    prompt has its options in an order drawn from the seed, the epoch and the position.

    With `pass_rate_limits` (lowest, highest) a question whose pass rate, as reported to `observe`, is outside the
    limits rests in the following epoch; then it is asked again, since the policy has changed.

    `ahead` questions are encoded besides those that are drawn.

    Questions that cannot become prompts are skipped and counted in `state().dropped`, once per epoch; the log names
    each one once. With `state` the stream continues where that state was taken.

    Raises:
        ValueError: if there are no questions, `weights` is invalid, or `state` belongs to another seed, other
            questions, other weights or another setting of `options_shuffled`.
    """

    def __init__(
        self,
        questions: tuple[Question, ...],
        encoder: Encoder,
        seed: int,
        state: StreamState | None = None,
        weights: Mapping[str, float] | None = None,
        options_shuffled: bool = False,
        pass_rate_limits: tuple[float, float] | None = None,
        ahead: int = AHEAD,
    ) -> None:
        if not questions:
            raise ValueError("no training questions; check data.root, data.modalities and data.question_types")
        weights = weights or {}
        digest = _digest(questions, weights, options_shuffled)
        state = state or StreamState(seed, digest)
        _require_same(state, seed, digest)
        self._questions = questions
        self._encoder = encoder
        self._seed = seed
        self._digest = digest
        self._options_shuffled = options_shuffled
        self._pass_rate_limits = pass_rate_limits
        self._ahead = ahead
        self._resting = dict(state.resting)
        self._expected = visits_per_epoch(questions, weights)
        self._epoch = state.epoch
        self._position = state.position
        self._dropped = Counter(state.dropped)
        self._refused: dict[Question, Refused] = {}
        self._begun = 0  # questions from the position on that the encoder has started on
        self._order = self._shuffled(self._epoch)
        self._orders: dict[int, list[int]] = {}  # of later epochs

    def state(self) -> StreamState:
        """Return the state from which a new stream yields what this one would yield next."""
        return StreamState(
            self._seed, self._digest, self._epoch, self._position, dict(self._dropped), dict(self._resting)
        )

    def begin(self, count: int) -> None:
        """Let the encoder start on the next `count` questions and on `ahead` that follow them, if it has not yet."""
        # Half of them, so that small draws do not look ahead each time; a wait for groups asks for none at all.
        if not count or self._begun >= max(count, self._ahead // 2):
            return
        self._begun = count + self._ahead
        asked = [
            self._asked(*each)
            for each in islice(self._upcoming(), self._begun)
            if self._resting.get(each[0].id) != each[1]
        ]
        self._encoder.begin([each for each in asked if each[0] not in self._refused])

    def _upcoming(self) -> Iterator[tuple[Question, int, int]]:
        """Yield the questions from the position on, over all epochs, with epoch and position."""
        for epoch in count_from(self._epoch):
            if epoch > self._epoch and epoch not in self._orders:
                self._orders[epoch] = self._shuffled(epoch)
            order = self._order if epoch == self._epoch else self._orders[epoch]
            for position in range(self._position if epoch == self._epoch else 0, len(order)):
                yield self._questions[order[position]], epoch, position

    def take(self, count: int) -> list[Prompt]:
        """Return the next `count` prompts, as yielded by `draw`."""
        return list(self.draw(count))

    def draw(self, count: int) -> Iterator[Prompt]:
        """Yield the next `count` prompts.

        Prompt ids, `<epoch>.<position>:<question id>`, are unique in the run. Encoding also starts on those that come
        after them, so that it overlaps with generation.

        Raises:
            ValueError: if N questions in a row cannot become prompts, N being the number of questions.
        """
        drawn = refused_in_a_row = 0
        self.begin(count)
        while drawn < count:
            question = self._questions[self._order[self._position]]
            # Compared for equality: an entry for a later epoch does not count yet.
            if self._resting.get(question.id) == self._epoch:
                self._dropped[RESTING] += 1
                self._advance()
                continue
            encoded = self._encode(question, self._epoch, self._position)
            self._advance()
            if isinstance(encoded, Prompt):
                drawn += 1
                refused_in_a_row = 0
                yield encoded
                continue
            self._dropped[encoded.reason] += 1
            refused_in_a_row += 1
            # Resting questions are not counted: they come back in the next epoch.
            if refused_in_a_row == len(self._questions):
                counts = ", ".join(f"{reason} {number}" for reason, number in self._dropped.items())
                raise ValueError(
                    f"none of the {len(self._questions)} training questions can become a prompt ({counts}); "
                    f"the last one: {encoded.detail}"
                )
        self.begin(count)

    def observe(self, prompt_id: str, pass_rate: float) -> None:
        """Record the share of correct answers to a prompt of this stream, in [0, 1]."""
        match = _PROMPT_ID.fullmatch(prompt_id)
        assert match is not None
        if self._pass_rate_limits is None:
            return
        lowest, highest = self._pass_rate_limits
        if lowest <= pass_rate <= highest:
            self._resting.pop(match[3], None)
        else:
            self._resting[match[3]] = int(match[1]) + 1

    def reissue(self, prompt_ids: Sequence[str]) -> list[Prompt]:
        """Return the prompts to which `take` gave these ids, in this run or in the run that it resumes.

        One whose image can no longer be read is dropped and counted.

        Raises:
            ValueError: if no prompt of this stream has an id.
        """
        if not prompt_ids:
            return []
        issued = [self._issued(prompt_id) for prompt_id in prompt_ids]
        self._begun = 0  # the encoder forgets what is not named
        self._encoder.begin([self._asked(*each) for each in issued])
        encoded = [self._encode(*each) for each in issued]
        self._dropped.update(refused.reason for refused in encoded if isinstance(refused, Refused))
        return [prompt for prompt in encoded if isinstance(prompt, Prompt)]

    def _issued(self, prompt_id: str) -> tuple[Question, int, int]:
        """Return the question of a prompt, its epoch and its position."""
        match = _PROMPT_ID.fullmatch(prompt_id)
        if match:
            epoch, position = int(match[1]), int(match[2])
            # Computed from the seed again, so that no order has to be stored.
            order = self._shuffled(epoch)
            question = self._questions[order[position]] if position < len(order) else None
            if question and question.id == match[3]:
                return question, epoch, position
        raise ValueError(
            f"prompt {prompt_id!r} does not belong to this stream; its ids are <epoch>.<position>:<question id>"
        )

    def _asked(self, question: Question, epoch: int, position: int) -> Asked:
        if self._options_shuffled:
            # Four numbers, the last not 0: NumPy pads seeds with zeros, and `_shuffled` already uses [seed, epoch].
            question = shuffle_options(question, np.random.default_rng([self._seed, epoch, position, 1]))
        return question, f"{epoch}.{position}:{question.id}"

    def _encode(self, question: Question, epoch: int, position: int) -> Prompt | Refused:
        question, prompt_id = self._asked(question, epoch, position)
        if question in self._refused:
            return self._refused[question]
        encoded = self._encoder.encode(question, prompt_id)
        if isinstance(encoded, Refused):
            self._refused[question] = encoded
            logger.warning("dropped (%s): %s", encoded.reason, encoded.detail)
        return encoded

    def _advance(self) -> None:
        self._position += 1
        self._begun = max(0, self._begun - 1)
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            # Forget rests that are over, to keep the saved state small.
            self._resting = {id_: epoch for id_, epoch in self._resting.items() if epoch >= self._epoch}
            known = self._orders.pop(self._epoch, None)
            self._order = self._shuffled(self._epoch) if known is None else known

    def _shuffled(self, epoch: int) -> list[int]:
        generator = np.random.default_rng([self._seed, epoch])
        if (self._expected == 1).all():
            return [int(index) for index in generator.permutation(len(self._questions))]
        # The mean of `_expected` is 1, so at least one entry is 1 or more and an epoch is never empty.
        visits = np.floor(self._expected + generator.random(len(self._questions))).astype(int)
        return [int(index) for index in generator.permutation(np.repeat(np.arange(len(visits)), visits))]


def require_same_questions(
    state: StreamState,
    questions: tuple[Question, ...],
    seed: int,
    weights: Mapping[str, float],
    options_shuffled: bool,
) -> None:
    """Check that a stream of these questions would take the state, as `PromptStream` does; needs no encoder.

    Raises:
        ValueError: it belongs to another seed, other questions, weights or another setting of `options_shuffled`.
    """
    _require_same(state, seed, _digest(questions, weights, options_shuffled))


def _require_same(state: StreamState, seed: int, digest: str) -> None:
    if (state.seed, state.digest) != (seed, digest):
        what = (
            f"train.seed={state.seed} (now {seed})"
            if state.seed != seed
            else "other training questions, data.sampling_weights or data.shuffle_options"
        )
        raise ValueError(
            f"the run to resume was started with {what}: resume with the settings and data that it was started with, "
            "or start a new run"
        )


def visits_per_epoch(questions: tuple[Question, ...], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Return how often an epoch holds each question in expectation, float64 [N] with mean 1.

    Raises:
        ValueError: if a weight is invalid or names no modality or question type of the questions, or all are 0.
    """
    present = {question.modality for question in questions} | {
        question.question_type for question in questions
    }
    for name, weight in weights.items():
        if name not in present:
            raise ValueError(
                f"data.sampling_weights: {name!r} is not a modality or question type of the training questions; "
                f"they have {', '.join(sorted(present))} (data.sampling_weights={{}} weighs all alike)"
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(
                f"data.sampling_weights: {name!r} has weight {weight}; give a finite number of 0 or more"
            )
    raw = np.array(
        [
            weights.get(question.modality, 1.0) * weights.get(question.question_type, 1.0)
            for question in questions
        ]
    )
    if not raw.any():
        raise ValueError("data.sampling_weights: all training questions have weight 0; give some a larger weight")
    return np.asarray(raw / raw.mean())


def _digest(questions: tuple[Question, ...], weights: Mapping[str, float], options_shuffled: bool) -> str:
    content = hashlib.blake2b(b"options shuffled\n" if options_shuffled else b"", digest_size=16)
    for name in sorted(weights):
        content.update(f"{name}\0{weights[name]!r}\n".encode())
    for question in questions:
        content.update(f"{question.id}\0{question.text}\0{question.answer}\n".encode())
    return content.hexdigest()
