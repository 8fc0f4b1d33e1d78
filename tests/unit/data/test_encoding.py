"""Questions become prompts, or are refused for a reason."""

from __future__ import annotations

import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.data import encoding
from medr1_ray.data.encoding import PromptEncoder, Refused, check_image
from medr1_ray.data.prompt_templates import chat_messages
from medr1_ray.types import Prompt, Question
from tests.unit.data.few_prompts import IMAGE_PAD_ID, encoder, ten_questions, tokenize
from tests.unit.model.model_folders import template_in_json_only, tiny_in


@pytest.fixture
def questions(tmp_path: Path) -> tuple[Question, ...]:
    return ten_questions(tmp_path)


def test_prompt_length_counts_visual_tokens(questions: tuple[Question, ...]) -> None:
    tokens = len(tokenize([{"content": chat_messages(questions[0], "no_think")[0]["content"]}]))
    exact = tokens - 1 + 4  # the pad stands for four visual tokens
    assert isinstance(encoder(exact).encode(questions[0], "p"), Prompt)
    refused = encoder(exact - 1).encode(questions[0], "p")
    assert isinstance(refused, Refused)
    assert refused.reason == "prompt too long"


def test_chat_template_without_image_is_an_error(questions: tuple[Question, ...]) -> None:
    text_only = PromptEncoder(lambda messages: [100], IMAGE_PAD_ID, 4, "no_think", 28, "squash", 1000)
    with pytest.raises(ValueError, match=r"chat template writes 0 <\|image_pad\|>"):
        text_only.encode(questions[0], "p")


def test_tiny_models_prompt(questions: tuple[Question, ...]) -> None:
    path = str(files("medr1_ray") / "tiny" / "model")
    tiny = PromptEncoder.from_checkpoint(path, "no_think", 84, "squash", 1024)
    # 84 / 14 patches a side, merged two by two: (6 / 2) ** 2.
    assert tiny.visual_tokens == 9
    prompt = tiny.encode(questions[0], "p")
    assert isinstance(prompt, Prompt)
    assert prompt.token_ids.dtype == np.int32
    text = AutoTokenizer.from_pretrained(path).decode(prompt.token_ids)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>What 0? A)x, B)y Your task: 1. Provide the correct "
        "single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags. 2. No extra information or "
        "text outside of this tag.<|im_end|>\n<|im_start|>assistant\n"
    )
    # 384 pixels become 392 in the processor: 28 patches a side, 14 * 14 visual tokens.
    assert PromptEncoder.from_checkpoint(path, "think", 384, "pad", 1024).visual_tokens == 196
    shared = tiny.encode(questions[5], "p5")
    assert isinstance(shared, Prompt)
    assert shared.image is prompt.image
    with pytest.raises(ValueError, match="read-only"):
        prompt.image[0] = 1


@pytest.mark.parametrize(
    ("words", "template", "lacks"),
    [
        ({"a": 0}, None, "chat template"),
        ({"a": 0, "<|image_pad|>": 1}, None, "chat template"),
        ({"a": 0}, "{{ messages }}", r"token <\|image_pad\|>"),
    ],
)
def test_a_checkpoint_without_a_template_or_an_image_token_is_refused(
    tmp_path: Path, words: dict[str, int], template: str | None, lacks: str
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model\.path=.* has no {lacks}"):
        PromptEncoder.from_checkpoint(str(tmp_path), "think", 84, "squash", 1024)


def test_the_template_is_the_processors_where_it_has_one(questions: tuple[Question, ...], tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "brought")
    template_in_json_only(folder)
    prompts = [
        PromptEncoder.from_checkpoint(str(path), "think", 84, "squash", 1024).encode(questions[0], "p")
        for path in (folder, tiny_model_path())
    ]
    assert isinstance(prompts[0], Prompt)
    assert isinstance(prompts[1], Prompt)
    assert prompts[0].token_ids.tolist() == prompts[1].token_ids.tolist()


@pytest.mark.parametrize(("images", "read"), [(2, "0121"), (1, "01021")])
def test_decoded_images_take_no_more_memory_than_they_may(
    questions: tuple[Question, ...], monkeypatch: pytest.MonkeyPatch, images: int, read: str
) -> None:
    # 28 x 28 pixels of 3 bytes each.
    monkeypatch.setattr(encoding, "IMAGE_CACHE_BYTES", images * 28 * 28 * 3)
    opened: list[str] = []
    load = encoding.load_image
    monkeypatch.setattr(encoding, "load_image", lambda path, *rest: opened.append(Path(path).stem) or load(path, *rest))
    encode = encoder()
    for number in (0, 1, 0, 2, 1):
        assert isinstance(encode.encode(questions[number], "p"), Prompt)
    # Of two that fit, 0 is found again, 2 drives out 1, and 1 is read again; with one, every one anew.
    assert "".join(opened) == read


def test_texts_are_laid_end_to_end_and_cut_by_their_lengths() -> None:
    found = encoding.continuations(lambda text: [ord(letter) for letter in text], ["ab", "", "c"])
    assert found.token_ids.tolist() == [97, 98, 99]
    assert found.lengths.tolist() == [2, 0, 1]
    assert (found.token_ids.dtype, found.lengths.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize(("longest", "fits"), [(62, True), (61, False)])
def test_the_settings_of_a_run_make_its_encoder(tmp_path: Path, longest: int, fits: bool) -> None:
    Image.new("RGB", (40, 20), (255, 255, 255)).save(tmp_path / "wide.png")
    question = Question("q", str(tmp_path / "wide.png"), "What 1?", ("x", "y"), 0, "CT", "Unknown", "d")
    config = Config.model_validate(
        {
            "mode": "think",
            "run": {"dir": "x"},
            "data": {"format": "phantoms", "root": "x", "image_size": 112, "image_fit": "pad"},
            "train": {"steps": 1},
            "rollout": {"max_prompt_tokens": longest},
        }
    )
    ours = PromptEncoder.of(config)
    assert ours.visual_tokens == 16  # 8 patches a side, merged two by two
    prompt = ours.encode(question, "p")
    assert isinstance(prompt, Prompt if fits else Refused)
    if isinstance(prompt, Prompt):
        text = AutoTokenizer.from_pretrained(tiny_model_path()).decode(prompt.token_ids)
        assert "Think through the question step by step" in text
        assert (prompt.image[28:84].min(), prompt.image[:28].max(), prompt.image[84:].max()) == (255, 0, 0)
    else:
        assert prompt.detail == "q: 62 tokens; rollout.max_prompt_tokens=61"


def test_a_runs_own_wording_reaches_the_model(tmp_path: Path) -> None:
    question, *_ = ten_questions(tmp_path)
    config = Config.model_validate(
        {
            "run": {"dir": "x"},
            "data": {"format": "phantoms", "root": "x", "image_size": 84},
            "train": {"steps": 1},
            "prompt": {"system": "You read scans.", "no_think": "Q: {question}\nAnswer in <answer> tags."},
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    prompt = PromptEncoder.of(config).encode(question, "p")
    assert isinstance(prompt, Prompt)
    assert tokenizer.decode(prompt.token_ids) == (
        "<|im_start|>system\nYou read scans.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Q: What 0? A)x, B)y\nAnswer in <answer> tags.<|im_end|>\n<|im_start|>assistant\n"
    )
    other = PromptEncoder.of(config).encode_as("Which?", question, "p")
    assert isinstance(other, Prompt)
    assert "You read scans." in tokenizer.decode(other.token_ids), "other requests too: it is the same model"


def test_a_read_that_hangs_is_a_refusal_like_others_and_the_deadline_is_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ten_questions(tmp_path)
    back = threading.Event()
    load = encoding.load_image
    hung = questions[0].image_path

    def on_a_bad_disk(path: str, *rest: Any) -> Any:
        return back.wait() if path == hung else load(path, *rest)

    monkeypatch.setattr(encoding, "load_image", on_a_bad_disk)
    config = Config.model_validate(
        {
            "run": {"dir": "x"},
            "data": {"format": "phantoms", "root": "x", "image_size": 84, "image_timeout_seconds": 2},
            "train": {"steps": 1},
        }
    )
    ours = PromptEncoder.of(config)
    refused = ours.encode(questions[0], "p")
    assert isinstance(refused, Refused)
    assert refused.reason == "image unreadable"
    assert refused.detail == f"q:0: {hung}: could not be read within data.image_timeout_seconds=2"
    with pytest.raises(ValueError, match=r"could not be read within data\.image_timeout_seconds=2"):
        check_image(Path(hung), config.data)
    assert isinstance(ours.encode(questions[1], "p"), Prompt)
    check_image(Path(questions[1].image_path), config.data)
    back.set()
    monkeypatch.setattr(encoding, "load_image", load)
    assert isinstance(ours.encode(questions[0], "p"), Prompt), "the failure is not kept in the cache"
