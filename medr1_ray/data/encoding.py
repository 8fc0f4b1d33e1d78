"""Encoding of questions as prompts: the chat template's token ids with one image pad, and the decoded image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medr1_ray.base.bounded_cache import BoundedCache
from medr1_ray.config import Config, DataSettings, PromptSettings
from medr1_ray.data.decoding import IMAGE_SECONDS, Decode, Decoders
from medr1_ray.data.images import ImageFit, load_image
from medr1_ray.data.prompt_templates import MEDR1_WORDING, chat_of, user_text
from medr1_ray.model.vocabulary import IMAGE_PAD, chat_template
from medr1_ray.types import Continuations, Image, Mode, Prompt, Question

IMAGE_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Refused:
    """A question that cannot become a prompt: `reason` is the category to count, `detail` the text for the log."""

    reason: str
    detail: str


Asked = tuple[Question, str]
"""A question that is to become a prompt, and the prompt's id."""


class Encoder(Protocol):
    """Makes prompts of questions: `PromptEncoder` here, or `encoders.handle.RemoteEncoder` in other processes."""

    def begin(self, asked: Sequence[Asked]) -> None:
        """Start on what will be encoded next. It is kept, however much it is, until the next call names others."""

    def encode(self, question: Question, prompt_id: str) -> Prompt | Refused:
        """Return the prompt, or why there is none: too long, a special token in its text, or an unreadable image.

        Raises:
            ValueError: the chat template does not write exactly one image token.
            RuntimeError: reading images hangs again and again.
        """

    def keep(self, pixels: NDArray[np.uint8]) -> Image:
        """Return an image of these pixels that many prompts can have."""


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of a run that its prompts depend on; `folder` is the model's."""

    folder: str
    mode: Mode
    image_size: int
    image_fit: ImageFit
    max_prompt_tokens: int
    prompt: PromptSettings
    image_seconds: float

    @classmethod
    def of(cls, config: Config) -> EncoderSettings:
        data = config.data
        return cls(
            str(config.model.folder.absolute()),
            config.mode,
            data.image_size,
            data.image_fit,
            config.rollout.max_prompt_tokens,
            config.prompt,
            data.image_timeout_seconds,
        )


class PromptEncoder:
    """Turns questions into prompts whose images are all `image_size` x `image_size` pixels.

    `prompt` is their wording. `tokenize` maps a chat to token ids, including the generation prompt; `visual_tokens` is
    the number of tokens that the model's processor makes of one image; `max_prompt_tokens` limits text and visual
    tokens together. Images are decoded in threads, ahead of time if announced by `begin`, each within
    `image_seconds`. The most recently used ones are cached, since an epoch asks several questions about each image.
    """

    def __init__(
        self,
        tokenize: Callable[[list[dict[str, object]]], list[int]],
        image_pad_id: int,
        visual_tokens: int,
        mode: Mode,
        image_size: int,
        image_fit: ImageFit,
        max_prompt_tokens: int,
        prompt: PromptSettings = MEDR1_WORDING,
        image_seconds: float = IMAGE_SECONDS,
    ) -> None:
        self.visual_tokens = visual_tokens
        self._tokenize = tokenize
        self._image_pad_id = image_pad_id
        self._mode = mode
        self._max_prompt_tokens = max_prompt_tokens
        self._prompt = prompt
        self._image_bytes = 3 * image_size**2
        self._images: BoundedCache[Decode] = BoundedCache(IMAGE_CACHE_BYTES)
        self._decoders = Decoders(lambda path: _read_only_image(path, image_size, image_fit), image_seconds)

    @classmethod
    def of(cls, settings: Config | EncoderSettings) -> PromptEncoder:
        """Return the encoder of a run with these settings. Raises as `from_checkpoint`."""
        if isinstance(settings, Config):
            settings = EncoderSettings.of(settings)
        return cls.from_checkpoint(
            settings.folder,
            settings.mode,
            settings.image_size,
            settings.image_fit,
            settings.max_prompt_tokens,
            settings.prompt,
            settings.image_seconds,
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: str,
        mode: Mode,
        image_size: int,
        image_fit: ImageFit,
        max_prompt_tokens: int,
        prompt: PromptSettings = MEDR1_WORDING,
        image_seconds: float = IMAGE_SECONDS,
    ) -> PromptEncoder:
        """Return the encoder for a Qwen2-VL or Qwen2.5-VL checkpoint folder.

        Raises:
            ValueError: if the checkpoint has no chat template or no image pad token.
        """
        # Imported here because the import takes seconds and reading a stream's state does not need it.
        from transformers import AutoImageProcessor, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        image_pad_id = tokenizer.get_vocab().get(IMAGE_PAD)
        template = chat_template(path, tokenizer)
        if image_pad_id is None or template is None:
            missing = "chat template" if template is None else f"token {IMAGE_PAD}"
            raise ValueError(f"model.path={path} has no {missing}; give a Qwen2-VL or Qwen2.5-VL checkpoint")
        # All backends count patches alike; the PIL backend does not need torchvision.
        processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        patches = processor.get_number_of_image_patches(image_size, image_size)
        return cls(
            partial(
                tokenizer.apply_chat_template,
                chat_template=template,
                add_generation_prompt=True,
                return_dict=False,
            ),
            image_pad_id,
            patches // processor.merge_size**2,
            mode,
            image_size,
            image_fit,
            max_prompt_tokens,
            prompt,
            image_seconds,
        )

    def begin(self, asked: Sequence[Asked]) -> None:
        """Start decoding the images of what will be encoded next (`Encoder.begin`)."""
        self.begin_images([question.image_path for question, _ in asked])

    def begin_images(self, paths: Sequence[str]) -> None:
        """Start decoding these images, and keep them until the next call."""
        distinct = dict.fromkeys(paths)
        self._images.keep(distinct.keys())
        for path in distinct:
            self._decoded(path)

    def encode(self, question: Question, prompt_id: str) -> Prompt | Refused:
        """Return the prompt, or why there is none (`Encoder.encode`)."""
        return self.encode_as(user_text(question, self._mode, self._prompt), question, prompt_id)

    def encode_as(self, text: str, question: Question, prompt_id: str) -> Prompt | Refused:
        """Encode as `encode` does, but with `text` as the user's text after the image."""
        token_ids = self._token_ids(text, question)
        if isinstance(token_ids, Refused):
            return token_ids
        try:
            return Prompt(prompt_id, question, token_ids, self.image(question.image_path))
        except ValueError as error:
            return unreadable(question, str(error))

    def token_ids(self, question: Question) -> NDArray[np.int32] | Refused:
        """Return the prompt's token ids, int32 [T], or why it can have none."""
        return self._token_ids(user_text(question, self._mode, self._prompt), question)

    def image(self, path: str) -> NDArray[np.uint8]:
        """Return the decoded image. Raises ValueError where it cannot be read, RuntimeError as `Encoder.encode`."""
        try:
            return self._decoders.wait(self._decoded(path))
        except ValueError:
            # Whoever asks again may find it readable.
            self._images.drop(path)
            raise

    def keep(self, pixels: NDArray[np.uint8]) -> Image:
        return pixels

    def _token_ids(self, text: str, question: Question) -> NDArray[np.int32] | Refused:
        if "<|" in question.text:
            # The tokenizer would make it a special token: an image that does not exist, or the end of the turn.
            return Refused("special token in the text", f"{question.id}: {question.text!r}")
        token_ids = np.array(self._tokenize(chat_of(text, self._prompt.system)), dtype=np.int32)
        images = np.count_nonzero(token_ids == self._image_pad_id)
        if images != 1:
            raise ValueError(
                f"model.path: its chat template writes {images} {IMAGE_PAD} tokens for one image, not 1; give a "
                "checkpoint with Qwen2-VL's chat template"
            )
        # The single pad is expanded to the image's visual tokens later.
        length = len(token_ids) - 1 + self.visual_tokens
        if length > self._max_prompt_tokens:
            return Refused(
                "prompt too long",
                f"{question.id}: {length} tokens; rollout.max_prompt_tokens={self._max_prompt_tokens}",
            )
        return token_ids

    def _decoded(self, path: str) -> Decode:
        # The cache holds what is under way too: an image that is announced and then requested is decoded once.
        return self._images.get(path, lambda: self._decoders.begin(path), lambda _: self._image_bytes)


def unreadable(question: Question, problem: str) -> Refused:
    """Return what a question is refused with whose image cannot be read."""
    return Refused("image unreadable", f"{question.id}: {problem}")


def check_image(path: Path, settings: DataSettings) -> None:
    """Raise ValueError where an image cannot be decoded, or not within `data.image_timeout_seconds`."""
    size, fit = settings.image_size, settings.image_fit
    decoders = Decoders(lambda file: load_image(file, size, fit), settings.image_timeout_seconds, threads=1)
    decoders.wait(decoders.begin(str(path)))


def continuations(tokenize: Callable[[str], list[int]], texts: Sequence[str]) -> Continuations:
    """Return the token ids of texts to be scored after a prompt; `tokenize` must not add special tokens."""
    token_ids = [tokenize(text) for text in texts]
    return Continuations(
        np.array([token for ids in token_ids for token in ids], np.int32),
        np.array([len(ids) for ids in token_ids], np.int32),
    )


def _read_only_image(path: str, size: int, fit: ImageFit) -> NDArray[np.uint8]:
    """Return a decoded image, read-only because several prompts may share it."""
    image = load_image(path, size, fit)
    image.flags.writeable = False
    return image
