"""The quick forward pass computes what transformers computes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from medr1_ray.tiny.curriculum import (
    graded_phantoms,
    phantom_lesson,
    question_lesson,
    shape_lesson,
    text_lesson,
)
from medr1_ray.tiny.network import FastForward, patches_of
from medr1_ray.tiny.packing import Packer


def test_patches_equal_the_processors(processor) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
    made = processor.image_processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    frames = made["pixel_values"].view(2, 36, 3, 2, 14 * 14)
    for frame in (0, 1):
        torch.testing.assert_close(patches_of(pictures), frames[:, :, :, frame].reshape(2, 36, 588))


def test_packed_rows_equal_transformers_one_by_one(processor, tokenizer, model) -> None:
    rng = np.random.default_rng(1)
    lessons = [text_lesson(rng, 2, 0.4, 0.3, True), shape_lesson(rng, 2), phantom_lesson(rng)]
    lessons.append(question_lesson(0, next(graded_phantoms(0)), "Lesion Grading", rng))
    network = FastForward(model)
    for lesson in lessons:
        alone = Packer(tokenizer, 384).pack([lesson], 1)
        with torch.no_grad():
            packed = network(alone).log_softmax(-1).gather(1, alone.targets[:, None])[:, 0]
            expected = [_reply_logprobs(processor, model, lesson.image, turn) for turn in lesson.turns]
        torch.testing.assert_close(packed, torch.cat(expected), atol=2e-4, rtol=0)


def _reply_logprobs(processor, model, image, turn) -> torch.Tensor:
    content = [{"type": "text", "text": turn.user}]
    if image is not None:
        content.insert(0, {"type": "image"})
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = None if image is None else [Image.fromarray(image)]
    inputs = processor(text=[prompt + turn.reply + "<|im_end|>"], images=images, return_tensors="pt")
    reply = len(processor.tokenizer(turn.reply)["input_ids"]) + 1
    logprobs = model(**inputs).logits[0].log_softmax(-1)[:-1]
    return logprobs.gather(1, inputs["input_ids"][0, 1:, None])[-reply:, 0]
