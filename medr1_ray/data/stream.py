"""The training prompts of a run: shuffled epochs without end, weighted if wanted, resumable at the exact question."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medr1_ray.data.encoding import PromptEncoder, Refused
from medr1_ray.data.questions import shuffle_options
from medr1_ray.types import Prompt, Question

logger = logging.getLogger(__name__)

RESTING = "resting because of its pass rate"
_PROMPT_ID = re.compile(r"(\d+)\.(\d+):(.*)", re.DOTALL)


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands: the next question is number `position` of the shuffled epoch `epoch`.

    `dropped` counts the questions passed over, by reason; `digest` is over the questions in their order, the
    weights and whether options are shuffled. `resting` has the epoch in which a question is passed over because of its
    pass rate, by id.
    """

    seed: int
    digest: str
    epoch: int = 0
    position: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    resting: dict[str, int] = field(default_factory=dict)


class PromptStream:
    """Endless prompts: each epoch holds every question once, in an order drawn from the seed and the epoch.

    With `weights` (of modalities and question types by name, 1 where not named) a question of weight w comes w / mean
    weight times in an epoch: the whole part for certain, the rest by chance. With `options_shuffled` each prompt has
    its options in an order drawn from the seed, the epoch and the position.

    With `pass_rate_limits` (lowest, highest) a question whose pass rate, as told to `observe`, is outside of them rests
    for an epoch; then it is asked again, since the policy has changed.

    Questions that cannot be prompts are passed over and counted in `state().dropped`, once per epoch; the log
    names each once. With `state` the stream goes on where that state was taken.

    Raises:
        ValueError: if there are no questions, or `state` is of another seed or of other questions.
    """

    def __init__(
        self,
        questions: tuple[Question, ...],
        encoder: PromptEncoder,
        seed: int,
        state: StreamState | None = None,
        weights: Mapping[str, float] | None = None,
        options_shuffled: bool = False,
        pass_rate_limits: tuple[float, float] | None = None,
    ) -> None:
        if not questions:
            raise ValueError("no training questions; see data.root, data.modalities and data.question_types")
        weights = weights or {}
        digest = _digest(questions, weights, options_shuffled)
        state = state or StreamState(seed, digest)
        if (state.seed, state.digest) != (seed, digest):
            what = (
                f"train.seed {state.seed}, now {seed}"
                if state.seed != seed
                else "other training questions, data.sampling_weights or data.shuffle_options"
            )
            raise ValueError(
                f"the run to resume was started with {what}: resume with the settings and data of then, "
                "or start a new run"
            )
        self._questions = questions
        self._encoder = encoder
        self._seed = seed
        self._digest = digest
        self._options_shuffled = options_shuffled
        self._pass_rate_limits = pass_rate_limits
        self._resting = dict(state.resting)
        self._expected = _expected_visits(questions, weights)
        self._epoch = state.epoch
        self._position = state.position
        self._dropped = Counter(state.dropped)
        self._refused: dict[Question, Refused] = {}
        self._order = self._shuffled(self._epoch)

    def state(self) -> StreamState:
        """The state from which a new stream yields what this one would yield next."""
        return StreamState(
            self._seed, self._digest, self._epoch, self._position, dict(self._dropped), dict(self._resting)
        )

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts, as `draw` makes them."""
        return list(self.draw(count))

    def draw(self, count: int) -> Iterator[Prompt]:
        """The next `count` prompts, each made when it is asked for: engines need not wait for the last one.

        Their ids `<epoch>.<position>:<question id>` are unique in the run. At the end the images of as many questions
        after them begin to be decoded, while these prompts are generated.

        Raises:
            ValueError: if as many questions in a row as an epoch holds are no prompts.
        """
        drawn = refused_in_a_row = 0
        while drawn < count:
            question = self._questions[self._order[self._position]]
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
            if refused_in_a_row == len(self._questions):
                counts = ", ".join(f"{reason} {number}" for reason, number in self._dropped.items())
                raise ValueError(
                    f"none of the {len(self._questions)} training questions can be a prompt ({counts}); "
                    f"the last one: {encoded.detail}"
                )
        for index in self._order[self._position : self._position + count]:
            self._encoder.begin(self._questions[index])

    def observe(self, prompt_id: str, pass_rate: float) -> None:
        """Take note of how often a prompt of this stream was answered rightly, in [0, 1]."""
        match = _PROMPT_ID.fullmatch(prompt_id)
        assert match is not None
        if self._pass_rate_limits is None:
            return
        lowest, highest = self._pass_rate_limits
        if lowest <= pass_rate <= highest:
            self._resting.pop(match[3], None)
        else:
            self._resting[match[3]] = int(match[1]) + 1

    def reissue(self, prompt_id: str) -> Prompt:
        """The prompt that `take` gave this id, in this run or in the one that is resumed.

        Raises:
            ValueError: if no prompt of this stream has the id, or its image cannot be read any more.
        """
        match = _PROMPT_ID.fullmatch(prompt_id)
        if match:
            epoch, position = int(match[1]), int(match[2])
            order = self._shuffled(epoch)
            question = self._questions[order[position]] if position < len(order) else None
            if question and question.id == match[3]:
                encoded = self._encode(question, epoch, position)
                if isinstance(encoded, Refused):
                    raise ValueError(f"prompt {prompt_id!r} cannot be issued again: {encoded.detail}")
                return encoded
        raise ValueError(
            f"prompt {prompt_id!r} is none of this stream's; its ids are <epoch>.<position>:<question id>"
        )

    def _encode(self, question: Question, epoch: int, position: int) -> Prompt | Refused:
        if self._options_shuffled:
            # Four numbers, the last not 0: NumPy pads seeds with zeros, and `_shuffled` has taken [seed, epoch].
            question = shuffle_options(question, np.random.default_rng([self._seed, epoch, position, 1]))
        if question in self._refused:
            return self._refused[question]
        encoded = self._encoder.encode(question, f"{epoch}.{position}:{question.id}")
        if isinstance(encoded, Refused):
            self._refused[question] = encoded
            logger.warning("dropped (%s): %s", encoded.reason, encoded.detail)
        return encoded

    def _advance(self) -> None:
        self._position += 1
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            self._resting = {id_: epoch for id_, epoch in self._resting.items() if epoch >= self._epoch}
            self._order = self._shuffled(self._epoch)

    def _shuffled(self, epoch: int) -> list[int]:
        generator = np.random.default_rng([self._seed, epoch])
        if (self._expected == 1).all():
            return [int(index) for index in generator.permutation(len(self._questions))]
        visits = np.floor(self._expected + generator.random(len(self._questions))).astype(int)
        return [int(index) for index in generator.permutation(np.repeat(np.arange(len(visits)), visits))]


def _expected_visits(questions: tuple[Question, ...], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Float64 [N], mean 1: how often an epoch holds each question."""
    present = {question.modality for question in questions} | {
        question.question_type for question in questions
    }
    for name, weight in weights.items():
        if name not in present:
            raise ValueError(
                f"data.sampling_weights: {name!r} is no modality or question type of the training questions; "
                f"they have {', '.join(sorted(present))}"
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(
                f"data.sampling_weights: {name!r} has weight {weight}; give a number from 0 upward"
            )
    raw = np.array(
        [
            weights.get(question.modality, 1.0) * weights.get(question.question_type, 1.0)
            for question in questions
        ]
    )
    if not raw.any():
        raise ValueError("data.sampling_weights leave no training question: all have weight 0")
    return np.asarray(raw / raw.mean())


def _digest(questions: tuple[Question, ...], weights: Mapping[str, float], options_shuffled: bool) -> str:
    content = hashlib.blake2b(b"options shuffled\n" if options_shuffled else b"", digest_size=16)
    for name in sorted(weights):
        content.update(f"{name}\0{weights[name]!r}\n".encode())
    for question in questions:
        content.update(f"{question.id}\0{question.text}\0{question.answer}\n".encode())
    return content.hexdigest()
