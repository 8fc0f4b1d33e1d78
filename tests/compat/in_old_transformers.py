"""Runs in an environment with an older transformers (or with ours): imports nothing of this package.

`source TINY OUT` writes the tiny model as this release saves a checkpoint, in several files; `logits FOLDER FILE` loads
a folder and writes token ids and logits of one prompt with an image.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from pathlib import Path

# The shared torchvision may be one that only our environment can import; without it these models load all the same.
sys.modules["torchvision"] = None  # type: ignore[assignment]

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration  # noqa: E402


def write_source(tiny: Path, out: Path) -> None:
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

    ours = json.loads((tiny / "config.json").read_text())
    text, vision = ours["text_config"], ours["vision_config"]
    rope = text["rope_parameters"]
    same = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    same += ["vocab_size", "rms_norm_eps", "max_position_embeddings", "eos_token_id", "pad_token_id"]
    tokens = ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]
    config = Qwen2VLConfig(
        **{key: text[key] for key in same},
        **{key: ours[key] for key in tokens},
        rope_theta=rope["rope_theta"],
        rope_scaling={"type": "mrope", "mrope_section": rope["mrope_section"]},
        tie_word_embeddings=True,
        vision_config={key: value for key, value in vision.items() if key not in ("model_type", "rope_parameters")},
    )
    model = Qwen2VLForConditionalGeneration(config)
    # The names of the released checkpoints, which 4.52 and later map to those of their modules.
    weights = load_file(tiny / "model.safetensors")
    if "model.language_model.embed_tokens.weight" in model.state_dict():
        weights = {"model." + ("" if n[:6] == "visual" else "language_") + n: w for n, w in weights.items()}
        weights = {name.replace("language_model.model.", "language_model."): w for name, w in weights.items()}
    left_out = model.load_state_dict(weights, strict=False)
    assert set(left_out.missing_keys) <= {"lm_head.weight"}, left_out
    assert not left_out.unexpected_keys, left_out
    model.tie_weights()
    model.save_pretrained(out, max_shard_size="2MB")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tiny / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(out)
    limits = json.loads((tiny / "processor_config.json").read_text())["image_processor"]["size"]
    Qwen2VLImageProcessor(min_pixels=limits["shortest_edge"], max_pixels=limits["longest_edge"]).save_pretrained(out)
    template = (tiny / "chat_template.jinja").read_text()
    (out / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    # What transformers refuses to write, and so must be copied.
    (out / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.01, "eos_token_id": [885, 883]}')


def write_logits(folder: Path, file: Path) -> None:
    model, info = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    assert not wrong, f"{folder}: not loaded as they are: {wrong}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which? A)CT, B)MRI"}]}]
    text = tokenizer.apply_chat_template(turn, chat_template=template, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text.replace("<|image_pad|>", "<|image_pad|>" * 9))])
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        # An image of 84 pixels: 6 patches a side, each of 3 colours, 2 frames, and 14 x 14 pixels.
        "pixel_values": torch.randn(36, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, 6, 6]]),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        logits = model.float().eval()(**inputs).logits
    torch.save({"ids": ids, "logits": logits, "tied": model.config.tie_word_embeddings}, file)


if __name__ == "__main__":
    _, what, given, result = sys.argv
    print(f"transformers {transformers.__version__}: {what} {given}")
    if what == "source":
        shutil.rmtree(result, ignore_errors=True)
        write_source(Path(given), Path(result))
    else:
        write_logits(Path(given), Path(result))
