"""The shipped model is a small Qwen2-VL, of the architecture that the builder makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from medr1_ray.config import tiny_model_path
from medr1_ray.tiny.architecture import build_config, build_model, build_processor
from medr1_ray.tiny.tokenizer import token_id

QUESTION = "What imaging modality was used? A)CT, B)MRI, C)X-ray, D)Ultrasound"


def chat(processor: Any, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def test_it_is_a_small_qwen2_vl(model) -> None:
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1_000_000 < parameters < 3_000_000
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.dtype == torch.float32
    assert sum(path.stat().st_size for path in Path(tiny_model_path()).rglob("*")) < 10_000_000


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


def test_the_shipped_configuration_and_processor_are_the_builders(tokenizer, tmp_path: Path) -> None:
    build_config(tokenizer).save_pretrained(tmp_path)
    build_processor(tokenizer).save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json", "chat_template.jinja"):
        built, shipped = ((folder / name).read_text() for folder in (tmp_path, tiny_model_path()))
        if name == "config.json":
            # Written by the whole model, whose class it names.
            built = json.dumps(json.loads(built) | {"architectures": ["Qwen2VLForConditionalGeneration"]})
            assert json.loads(built) == json.loads(shipped)
        else:
            assert built == shipped, name


def test_attention_starts_as_an_induction_circuit(tokenizer) -> None:
    model = build_model(tokenizer, seed=0).eval()
    model.set_attn_implementation("eager")
    ids = tokenizer('A)CT, B)MRI, C)X-ray. Which option is "MRI"?')["input_ids"]
    at = [place for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)) if token == "MRI"]
    with torch.no_grad():
        first, second, *_ = model(torch.tensor([ids]), output_attentions=True).attentions
    # Of the first layer two heads look one and two tokens back, wherever they are.
    for head, distance in enumerate((1, 2)):
        assert first[0, head].diagonal(-distance).min() > 0.8
    # Of the second two look, at the token after a name, for the places that hold the same name.
    for head in (0, 1):
        assert second[0, head, at[1] + 1, at].sum() > 0.9
        assert second[0, head, at[1] + 1, at[0]] > 0.3


def test_a_seed_determines_the_start(tokenizer) -> None:
    one, same, other = (build_model(tokenizer, seed).state_dict() for seed in (3, 3, 4))
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
