"""The driver's side of the encoder actors: what is begun ahead, and prompts whose images are in the object store.

The driver owns the objects, so that they outlast the actor that made them; where a node takes some along, Ray has them
made again (`max_task_retries`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medr1_ray.base.bounded_cache import BoundedCache
from medr1_ray.base.shared_file import SharedFile
from medr1_ray.base.stopping import break_off_if_asked
from medr1_ray.cluster.driver_files import DriverFiles, model_files
from medr1_ray.cluster.leaving_nodes import this_node
from medr1_ray.cluster.pending_calls import describe_error
from medr1_ray.config import Config
from medr1_ray.data.dataset import Dataset
from medr1_ray.data.encoding import IMAGE_CACHE_BYTES, Asked, EncoderSettings, Refused, unreadable
from medr1_ray.encoders.actor import EncodedBatch, EncoderActor, EncodingBatch
from medr1_ray.types import Image, Prompt, Question, StoredImage, pixels_digest

_IN_A_CALL = 16
_MOST_RESTARTS = 10
# How often `meanwhile` runs in a wait, as while the driver waits for the learner.
_LOOK_SECONDS = 0.05
# So many images of a batch may hang, one after the other, before the actor itself says that the file system is gone.
_HANGING_IN_A_ROW = 4


@dataclass(frozen=True)
class _Batch:
    """A batch under way: Ray's reference to its result."""

    result: Any
    deadline_seconds: float
    meanwhile: Callable[[], None]

    @cached_property
    def encoded(self) -> EncodedBatch:
        """The result; waits for it.

        Raises:
            RuntimeError: it is late, an encoder died again and again, or as `Encoder.encode`.
            ValueError: as `Encoder.encode`.
        """
        end = time.monotonic() + self.deadline_seconds
        while not ray.wait([self.result], timeout=_LOOK_SECONDS)[0]:
            break_off_if_asked()
            # First, because what is done meanwhile may take longer than this has left.
            if time.monotonic() > end:
                raise RuntimeError(
                    f"prompts were not encoded within {self.deadline_seconds:g} s, which follows from "
                    "cluster.start_timeout_seconds and data.image_timeout_seconds; look into Ray's logs, and for a "
                    "node with the labels of cluster.labels.encoder, if there are any"
                )
            self.meanwhile()
        try:
            found: EncodedBatch = ray.get(self.result)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise RuntimeError(f"prompts could not be encoded: {describe_error(error)}") from error
        return found


@dataclass(frozen=True)
class _StoredFile:
    """An image under way: number `place` of a batch, and Ray's reference to its pixels."""

    batch: _Batch
    place: int
    reference: Any


class EncoderActors:
    """`data.encoders` actors on the driver's node, which sees the data, or where `cluster.labels.encoder` says. They
    start with the first batch.

    Args:
        config: the settings of the run that they serve first; runs that follow bring their own with their batches.
        files: of the driver's, which the nodes of the actors must see.
    """

    def __init__(self, config: Config, files: DriverFiles = ()) -> None:
        self._count = config.data.encoders
        self._labels = dict(config.cluster.labels.encoder)
        self._files = files
        self._actors: list[Any] = []
        self._next = itertools.count()
        self._deadline_seconds = (
            config.cluster.start_timeout_seconds + _HANGING_IN_A_ROW * config.data.image_timeout_seconds
        )

    def encode(self, batch: EncodingBatch, meanwhile: Callable[[], None]) -> tuple[_Batch, list[_StoredFile]]:
        """Begin on a batch; the images are those of its files, in their order. `meanwhile` is called repeatedly while
        somebody waits for it."""
        if not self._actors:
            self._actors = [self._start(f"encoder-{index}") for index in range(self._count)]
        actor = self._actors[next(self._next) % self._count]
        references = actor.encode.options(num_returns=1 + len(batch.images)).remote(batch)
        result, *images = references if batch.images else [references]
        begun = _Batch(result, self._deadline_seconds, meanwhile)
        return begun, [_StoredFile(begun, place, reference) for place, reference in enumerate(images)]

    def _start(self, name: str) -> Any:
        # They claim no CPU, which a head node may not offer; on labelled nodes they are spread.
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": _MOST_RESTARTS, "max_task_retries": _MOST_RESTARTS}
        if self._labels:
            options |= {"label_selector": self._labels, "scheduling_strategy": "SPREAD"}
        else:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(this_node(), soft=False)
        return ray.remote(EncoderActor).options(**options).remote(name, self._files)


class RemoteEncoder:
    """An `Encoder` whose work is done by the encoder actors.

    `IMAGE_CACHE_BYTES` of images that were used last are kept in the object store, besides those of what is begun.

    `meanwhile` is called repeatedly during waits, which a slow disk may make long: the pool goes on with what its
    actors answer.
    """

    def __init__(self, actors: EncoderActors, config: Config) -> None:
        self._actors = actors
        self.meanwhile: Callable[[], None] = lambda: None
        self._settings = EncoderSettings.of(config)
        self._image_bytes = 3 * config.data.image_size**2
        self._begun: dict[str, tuple[Question, _Batch, int]] = {}  # by prompt id: place of its text in a batch
        self._images: BoundedCache[_StoredFile] = BoundedCache(IMAGE_CACHE_BYTES)  # by path
        self._visual_tokens: int | None = None

    @property
    def visual_tokens(self) -> int:
        """The number of tokens that the model makes of one image; known once something was encoded."""
        assert self._visual_tokens is not None
        return self._visual_tokens

    def begin(self, asked: Sequence[Asked]) -> None:
        """Start on what will be encoded next (`Encoder.begin`)."""
        ids = {prompt_id for _, prompt_id in asked}
        self._begun = {prompt_id: begun for prompt_id, begun in self._begun.items() if prompt_id in ids}
        self._images.keep({question.image_path for question, _ in asked})
        new = [each for each in asked if not self._has_begun(*each)]
        for start in range(0, len(new), _IN_A_CALL):
            self._send(new[start : start + _IN_A_CALL])

    def encode(self, question: Question, prompt_id: str) -> Prompt | Refused:
        """Return the prompt, or why there is none (`Encoder.encode`).

        Raises:
            RuntimeError: encoders are late, or died again and again.
        """
        if not self._has_begun(question, prompt_id):
            self._send([(question, prompt_id)])
        _, batch, place = self._begun.pop(prompt_id)
        token_ids = batch.encoded.token_ids[place]
        self._visual_tokens = batch.encoded.visual_tokens
        if isinstance(token_ids, Refused):
            return token_ids
        path = question.image_path
        image = self._images.get(path, lambda: self._begin_image(path), self._size)
        facts = image.batch.encoded.images[image.place]
        if facts.problem is not None:
            # Whoever asks again may find it readable.
            self._images.drop(path)
            return unreadable(question, facts.problem)
        return Prompt(prompt_id, question, token_ids, StoredImage(image.reference, facts.shape, facts.digest))

    def keep(self, pixels: NDArray[np.uint8]) -> Image:
        """Return an image of these pixels that many prompts can have."""
        height, width, colours = pixels.shape
        return StoredImage(ray.put(pixels), (height, width, colours), pixels_digest(pixels))

    def _has_begun(self, question: Question, prompt_id: str) -> bool:
        return prompt_id in self._begun and self._begun[prompt_id][0] == question

    def _send(self, asked: Sequence[Asked]) -> None:
        questions = tuple(question for question, _ in asked)
        missing = tuple({each.image_path: None for each in questions if each.image_path not in self._images})
        batch, images = self._encode(EncodingBatch(self._settings, questions, missing))
        for image, path in zip(images, missing, strict=True):
            self._images.get(path, partial(_same, image), self._size)
        for place, (question, prompt_id) in enumerate(asked):
            self._begun[prompt_id] = (question, batch, place)

    def _begin_image(self, path: str) -> _StoredFile:
        """Once more: it was evicted since the text of its question was begun."""
        _, (image,) = self._encode(EncodingBatch(self._settings, (), (path,)))
        return image

    def _encode(self, batch: EncodingBatch) -> tuple[_Batch, list[_StoredFile]]:
        # What is begun before there is a pool may be waited for when there is one.
        return self._actors.encode(batch, lambda: self.meanwhile())

    def _size(self, _: _StoredFile) -> int:
        return self._image_bytes


def _same(image: _StoredFile) -> _StoredFile:
    return image


def data_files(config: Config, dataset: Dataset) -> DriverFiles:
    """Return a file of the data and one of the model, for encoders on other nodes than the driver's; none where all are
    there."""
    if not config.cluster.labels.encoder:
        return ()
    # Without what follows `#` in a path, where it is a picture of a file of several.
    paths = (Path(path) for each in dataset.train for path in (each.image_path, each.image_path.rpartition("#")[0]))
    path = next((path for path in paths if path.is_file()), None)
    data = (SharedFile.of("data.root", config.data.root, path),) if path else ()
    return (*data, *model_files(config))
