"""A digest of what is in the image files of questions: answers belong to it, wherever the files lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b, file_digest

import numpy as np

from medr1_ray.data.decoding import Decoders, Image
from medr1_ray.types import Question


def images_digest(questions: Sequence[Question], seconds: float) -> str:
    """Return the hex BLAKE2b-128 digest of the bytes of each question's image, whatever the order of the questions.

    Each file is read once, in threads, within `seconds`. The number of those that cannot be read follows the digest.

    Raises:
        RuntimeError: reading images hangs again and again.
    """
    readers = Decoders(_digest_of, seconds)
    reads = {path: readers.begin(path) for path in dict.fromkeys(question.image_path for question in questions)}
    contents: dict[str, bytes | None] = {}
    for path, read in reads.items():
        try:
            contents[path] = readers.wait(read).tobytes()
        except (OSError, ValueError):
            contents[path] = None
    state = blake2b(digest_size=16)
    for question in sorted(questions, key=lambda question: question.id):
        state.update(repr((question.id, contents[question.image_path])).encode())
    unread = sum(content is None for content in contents.values())
    return state.hexdigest() + (f" ({unread} could not be read)" if unread else "")


def _digest_of(path: str) -> Image:
    if not os.path.isfile(path):
        raise ValueError("it is not a regular file")  # opening a pipe would wait for a writer
    with open(path, "rb") as file:
        return np.frombuffer(file_digest(file, lambda: blake2b(digest_size=16)).digest(), np.uint8)
