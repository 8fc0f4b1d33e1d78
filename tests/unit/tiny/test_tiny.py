"""The shipped tiny Qwen2-VL and the arithmetic of its builder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from medr1_ray.config import tiny_model_path
from medr1_ray.data.prompt_templates import TEMPLATES
from medr1_ray.tiny.curriculum import (
    POOLS,
    graded_phantoms,
    phantom_lesson,
    question_lesson,
    shape_lesson,
    text_lesson,
)
from medr1_ray.tiny.network import FastForward, patches_of
from medr1_ray.tiny.packing import Packer
from medr1_ray.tiny.tokenizer import SPECIAL_TOKENS, TAGS, token_id

QUESTION = "What imaging modality was used? A)CT, B)MRI, C)X-ray, D)Ultrasound"


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(tiny_model_path(), local_files_only=True)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_model_path(), local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(tiny_model_path(), local_files_only=True).eval()


def chat(processor, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_importing_the_path_is_light() -> None:
    code = "import sys; b = set(sys.modules); import medr1_ray.tiny; print(*sorted(set(sys.modules) - b))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy"} & set(out.split())


def test_it_is_a_small_qwen2_vl(model) -> None:
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1_000_000 < parameters < 3_000_000
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.dtype == torch.float32
    assert sum(path.stat().st_size for path in Path(tiny_model_path()).rglob("*")) < 10_000_000


def test_special_tokens_are_qwen2_vls(tokenizer, model) -> None:
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config.image_token_id == token_id(tokenizer, "<|image_pad|>")
    ends = {token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")}
    assert set(model.generation_config.eos_token_id) == ends
    assert model.config.text_config.vocab_size == len(tokenizer)


def test_token_id_names_a_missing_token(tokenizer) -> None:
    with pytest.raises(ValueError, match=r"'<\|nothing\|>'"):
        token_id(tokenizer, "<|nothing|>")


def test_an_answer_is_four_tokens_and_survives_decoding(tokenizer) -> None:
    ids = tokenizer("<answer>C</answer><|im_end|>")["input_ids"]
    assert ids == [token_id(tokenizer, token) for token in ("<answer>", "C", "</answer>", "<|im_end|>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<answer>C</answer>"
    assert not set(TAGS) & set(tokenizer.all_special_tokens)


def test_the_letter_is_the_same_token_in_prompt_and_answer(tokenizer) -> None:
    ids = tokenizer(QUESTION)["input_ids"]
    for letter in "ABCD":
        assert ids.count(token_id(tokenizer, letter)) == 1


def test_every_option_word_is_one_token(tokenizer) -> None:
    for pool in POOLS:
        for name in pool:
            assert len(tokenizer(f"A){name}")["input_ids"]) == 2 + len(name.split()), name


@pytest.mark.parametrize("mode", ["think", "no_think", "think_after"])
def test_instructions_are_short(tokenizer, mode) -> None:
    assert len(tokenizer(TEMPLATES[mode].replace("{question}", ""))["input_ids"]) <= 9


@pytest.mark.parametrize("text", ["Hällo, wörld! x\n\ny  z", "A) CT or B)MRI? 0.5 \t <tag> 医"])
def test_any_text_survives(tokenizer, text) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_chat_template_is_qwen2_vls(processor) -> None:
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat(processor, "Hello") == expected


@pytest.mark.parametrize(("side", "tokens"), [(84, 9), (112, 16), (384, 196), (392, 196), (800, 196)])
def test_visual_tokens(processor, side, tokens) -> None:
    image = Image.new("RGB", (side, side), (10, 200, 30))
    inputs = processor(text=[chat(processor, QUESTION)], images=[image], return_tensors="pt")
    pad = token_id(processor.tokenizer, "<|image_pad|>")
    assert int((inputs["input_ids"] == pad).sum()) == tokens


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


def test_groups_of_a_row_do_not_see_each_other(tokenizer, model) -> None:
    rng = np.random.default_rng(2)
    first, second = shape_lesson(rng, 3), phantom_lesson(rng)
    network, packer = FastForward(model), Packer(tokenizer, 384)
    with torch.no_grad():
        together = network(packer.pack([first, second], 1))
        apart = torch.cat([network(packer.pack([lesson], 1)) for lesson in (first, second)])
    torch.testing.assert_close(together, apart, atol=2e-4, rtol=0)


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
