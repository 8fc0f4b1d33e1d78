"""The Ray actor that encodes questions. Created by `EncoderActors`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medr1_ray.base.shared_file import SharedFile
from medr1_ray.data.encoding import EncoderSettings, PromptEncoder, Refused
from medr1_ray.model.folder.check import stay_offline
from medr1_ray.types import Question, pixels_digest

_NONE = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class EncodingBatch:
    """Questions whose text is to be encoded, and files of the images that are to be decoded, each once."""

    settings: EncoderSettings
    questions: tuple[Question, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class ImageFacts:
    """Shape [H, W, 3] and digest of a decoded image, or what is wrong with its file."""

    shape: tuple[int, int, int]
    digest: str
    problem: str | None = None


@dataclass(frozen=True)
class EncodedBatch:
    """The results in the batch's order: of each question its token ids, int32 [T], or why it has none; `visual_tokens`
    is the number that the model makes of one image."""

    token_ids: tuple[NDArray[np.int32] | Refused, ...]
    images: tuple[ImageFacts, ...]
    visual_tokens: int


class EncoderActor:
    """Encodes batches one after the other, and decodes the images of one in threads.

    Consumes questions and paths, produces token ids and pixels, waits for the file system.

    Raises ValueError where this node does not see one of `files` as the driver's does.
    """

    def __init__(self, name: str, files: Sequence[SharedFile] = ()) -> None:
        # First, because Ray asks for the name of an actor whose start failed.
        self._name = name
        for file in files:
            file.require()
        self._encoders: dict[EncoderSettings, PromptEncoder] = {}
        stay_offline()

    def __repr__(self) -> str:
        return self._name

    def encode(self, batch: EncodingBatch) -> Any:
        """The `EncodedBatch`, and after it the pixels of each image, uint8 [H, W, 3], empty where it cannot be read:
        Ray makes an object of each. The batch alone where it has no images.

        Raises as `Encoder.encode`.
        """
        encoder = self._encoder(batch.settings)
        encoder.begin_images(batch.images)
        token_ids = tuple(encoder.token_ids(question) for question in batch.questions)
        found = [_read(encoder, path) for path in batch.images]
        encoded = EncodedBatch(token_ids, tuple(facts for facts, _ in found), encoder.visual_tokens)
        return (encoded, *(pixels for _, pixels in found)) if found else encoded

    def _encoder(self, settings: EncoderSettings) -> PromptEncoder:
        if settings not in self._encoders:
            self._encoders[settings] = PromptEncoder.of(settings)
        return self._encoders[settings]


def _read(encoder: PromptEncoder, path: str) -> tuple[ImageFacts, NDArray[np.uint8]]:
    try:
        pixels = encoder.image(path)
    except ValueError as error:
        return ImageFacts((0, 0, 3), "", str(error)), _NONE
    height, width, colours = pixels.shape
    return ImageFacts((height, width, colours), pixels_digest(pixels)), pixels
