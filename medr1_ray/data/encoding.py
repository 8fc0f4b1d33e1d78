"""Questions as prompts: the chat template's token ids with one image pad, and the decoded image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medr1_ray.base.bounded_cache import BoundedCache
from medr1_ray.data.images import ImageFit, load_image
from medr1_ray.data.prompt_templates import user_text, user_turn
from medr1_ray.types import Continuations, Mode, Prompt, Question

IMAGE_PAD = "<|image_pad|>"
IMAGE_CACHE_BYTES = 256 * 2**20
DECODING_THREADS = 4


@dataclass(frozen=True)
class Refused:
    """A question that is no prompt: `reason` is what is counted, `detail` what a log says about this one."""

    reason: str
    detail: str


class PromptEncoder:
    """Makes prompts of questions, all with images of `image_size` pixels square.

    `tokenize` maps a chat to token ids, the generation prompt included; `visual_tokens` is what the model's
    processor makes of one image; `max_prompt_tokens` counts them. Images are decoded in threads, ahead where
    `begin` was told, and those used last are kept, since an epoch asks several questions about each.
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
    ) -> None:
        self.visual_tokens = visual_tokens
        self._tokenize = tokenize
        self._image_pad_id = image_pad_id
        self._mode = mode
        self._max_prompt_tokens = max_prompt_tokens
        self._image_size = image_size
        self._image_fit: ImageFit = image_fit
        self._images: BoundedCache[Future[NDArray[np.uint8]]] = BoundedCache(IMAGE_CACHE_BYTES)
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="images")

    @classmethod
    def from_checkpoint(
        cls, path: str, mode: Mode, image_size: int, image_fit: ImageFit, max_prompt_tokens: int
    ) -> PromptEncoder:
        """The encoder for a Qwen2-VL or Qwen2.5-VL checkpoint folder.

        Raises:
            ValueError: if the checkpoint has no chat template or no image pad token.
        """
        # Imported here because it takes seconds, and whoever reads a stream's state needs none of it.
        from transformers import AutoImageProcessor, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        image_pad_id = tokenizer.get_vocab().get(IMAGE_PAD)
        if image_pad_id is None or tokenizer.chat_template is None:
            missing = "chat template" if tokenizer.chat_template is None else f"token {IMAGE_PAD}"
            raise ValueError(f"model.path={path} has no {missing}; give a Qwen2-VL or Qwen2.5-VL checkpoint")
        # The PIL backend counts patches as the others do, and needs no torchvision.
        processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        patches = processor.get_number_of_image_patches(image_size, image_size)
        return cls(
            partial(tokenizer.apply_chat_template, add_generation_prompt=True, return_dict=False),
            image_pad_id,
            patches // processor.merge_size**2,
            mode,
            image_size,
            image_fit,
            max_prompt_tokens,
        )

    def begin(self, question: Question) -> None:
        """Start to decode the image of a question that will be encoded."""
        self._decoded(question.image_path)

    def encode(self, question: Question, prompt_id: str) -> Prompt | Refused:
        """The prompt, or why there is none: too long, a special token in its text, or an unreadable image.

        Raises:
            ValueError: if the chat template does not write one image token.
        """
        return self.encode_as(user_text(question, self._mode), question, prompt_id)

    def encode_as(self, text: str, question: Question, prompt_id: str) -> Prompt | Refused:
        """The same with another wording: `text` is what the user says after the image."""
        if "<|" in question.text:
            # It would be read as an image that is not there, or as the end of the turn.
            return Refused("special token in the text", f"{question.id}: {question.text!r}")
        token_ids = np.array(self._tokenize(user_turn(text)), dtype=np.int32)
        images = np.count_nonzero(token_ids == self._image_pad_id)
        if images != 1:
            raise ValueError(
                f"model.path: its chat template writes {images} {IMAGE_PAD} for one image; give a checkpoint with "
                "the chat template of Qwen2-VL"
            )
        length = len(token_ids) - 1 + self.visual_tokens
        if length > self._max_prompt_tokens:
            return Refused(
                "prompt too long",
                f"{question.id}: {length} tokens; rollout.max_prompt_tokens={self._max_prompt_tokens}",
            )
        try:
            image = self._decoded(question.image_path).result()
        except ValueError as error:
            return Refused("image unreadable", f"{question.id}: {error}")
        return Prompt(prompt_id, question, token_ids, image)

    def _decoded(self, path: str) -> Future[NDArray[np.uint8]]:
        size, fit = self._image_size, self._image_fit
        return self._images.get(
            path, lambda: self._threads.submit(_read_only_image, path, size, fit), 3 * size**2
        )


def continuations(tokenize: Callable[[str], list[int]], texts: Sequence[str]) -> Continuations:
    """Texts to be scored after a prompt; `tokenize` adds no special tokens."""
    token_ids = [tokenize(text) for text in texts]
    return Continuations(
        np.array([token for ids in token_ids for token in ids], np.int32),
        np.array([len(ids) for ids in token_ids], np.int32),
    )


def _read_only_image(path: str, size: int, fit: ImageFit) -> NDArray[np.uint8]:
    """An image that several prompts may share."""
    image = load_image(path, size, fit)
    image.flags.writeable = False
    return image
