"""The check of a model folder before anything starts: its small files, its weights' headers, and a sample of these.

A folder that passes is one that the learner, the engines and an evaluation can load.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from medr1_ray.base.manifest import MANIFEST_FILE, find_damage
from medr1_ray.config import Config
from medr1_ray.model.family import FAMILIES, HEAD, checkpoint_name, refuse_own_code
from medr1_ray.model.vocabulary import IMAGE_PAD, chat_template, load_vocabulary
from medr1_ray.model.weight_files import LEARNER_STATE, is_tied, read_json, stored_tensors, weight_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What looks like an id of the hub, and is a path that people have.
_LOCAL = {"models", "runs", "checkpoints"}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_READ_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors")
_POINTER_START = b"version https://git-lfs"
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_END = "eos_token_id"
_READ_WHOLE, _READ_ROWS = 2**18, 4
_OF_THE_SOURCE = "copy it from the model that this one was made from"

T = TypeVar("T")


def stay_offline() -> None:
    """Keep huggingface_hub from looking anything up; call it before transformers or vLLM are imported."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def check_model(config: Config) -> None:
    """Check the folder of `model.path`, and that its image processor takes images of `data.image_size`.

    Raises:
        ValueError: with the folder, the file, what is wrong, and what to do.
    """
    folder = config.model.folder
    try:
        check_folder(folder)
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from None
    except OSError as error:
        # For example a link of the hub's cache whose file was not copied with it.
        raise ValueError(
            f"model.path: {error.filename}: cannot be read ({error.strerror}); {_AGAIN}, as files and not as links"
        ) from None
    _check_lengths(folder, config)
    _check_image_size(folder, config.data.image_size)


def check_folder(folder: Path) -> None:
    """Check everything that a folder must have, without loading weights. Raises ValueError as `check_model`."""
    stay_offline()
    require_checkpoint(folder)
    _check_manifest(folder)
    config = _model_config(folder)
    _check_weights(folder, config)
    _check_positions(folder, config)
    _check_ids(folder, config)
    _check_numbers(folder)
    _check_tokenizer(folder)
    if not any((folder / name).exists() for name in _PROCESSOR_FILES):
        raise ValueError(f"{folder}: has no image processor ({' or '.join(_PROCESSOR_FILES)}); {_OF_THE_SOURCE}")


def require_checkpoint(folder: Path) -> None:
    """Check what file names and config.json tell, without transformers. Raises ValueError as `check_model`."""
    if not folder.exists():
        if _HUB_ID.fullmatch(str(folder)) and folder.parts[0] not in _LOCAL and not folder.parent.is_dir():
            raise ValueError(
                f"{str(folder)!r} is not a folder here, and nothing is looked up at the hub; if it is a model of "
                f"the hub, download it first with `hf download {folder} --local-dir models/{folder.name}` and give "
                f"models/{folder.name}"
            )
        raise ValueError(
            f"{str(folder)!r} does not exist; give the folder of a Hugging Face checkpoint (`hf download OWNER/NAME "
            "--local-dir FOLDER` gets one), or `tiny`"
        )
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; give the folder of a Hugging Face checkpoint")
    latest = folder / "checkpoints" / "latest"
    if latest.is_file():
        checkpoint = latest.parent / latest.read_text().strip()
        raise ValueError(f"{folder}: is a run's directory; give its checkpoint {checkpoint}")
    files = {path.name for path in folder.iterdir()}
    if not files:
        raise ValueError(f"{folder}: is empty; give the folder of a Hugging Face checkpoint")
    for name in sorted(files):
        if (folder / name).suffix in _READ_SUFFIXES and _is_pointer(folder / name):
            raise ValueError(
                f"{folder / name}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or "
                "download it again"
            )
    if "adapter_config.json" in files:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise ValueError(
            f"{folder / 'adapter_config.json'}: this is a PEFT adapter of {base!r}, not a model; merge it into its "
            "model first (peft's merge_and_unload, then save_pretrained) and give that folder"
        )
    if "config.yaml" in files:
        raise ValueError(f"{folder}: is a run's directory without a checkpoint; give one that has saved one")
    if "config.json" not in files:
        raise ValueError(f"{folder}: is not a checkpoint, it has no config.json; give the folder of a whole checkpoint")
    _check_settings(folder / "config.json")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", *_PROCESSOR_FILES):
        if name in files:
            refuse_own_code(folder / name, read_json(folder / name))
    if not any(name.endswith(".safetensors") or name == "model.safetensors.index.json" for name in files):
        raise ValueError(f"{folder}: {_without_safetensors(files)}")


def _check_manifest(folder: Path) -> None:
    """Check the bytes of a checkpoint of ours, but for the optimizer's state, which only a resume needs."""
    damage = find_damage(folder, but=LEARNER_STATE) if (folder / MANIFEST_FILE).exists() else None
    if damage:
        raise ValueError(
            f"{folder}: is damaged: {damage}; use another checkpoint, or, if the change is meant, delete its "
            f"{MANIFEST_FILE}"
        )


def _is_pointer(path: Path) -> bool:
    """Return whether a file is what Git leaves where Git LFS has not fetched the file itself."""
    with path.open("rb") as file:
        return file.read(len(_POINTER_START)) == _POINTER_START


def _check_settings(path: Path) -> None:
    settings = read_json(path)
    if settings.get("model_type") not in FAMILIES:
        raise ValueError(
            f"{path}: a model of type {settings.get('model_type')!r}; allowed: {', '.join(FAMILIES)}. Give a "
            "checkpoint of one of these families"
        )
    if "quantization_config" in settings:
        method = settings["quantization_config"].get("quant_method", "some method")
        raise ValueError(f"{path}: the model is quantized ({method}), which cannot be trained; give the original one")


def _without_safetensors(files: set[str]) -> str:
    others = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth", ".gguf")) and "args" not in name)
    if others:
        return (
            f"is not a checkpoint in safetensors, its weights are in {others[0]}; load it with transformers, save it "
            "with save_pretrained, and give the new folder"
        )
    return (
        "is not a checkpoint, it has config.json but no weights (*.safetensors): a shape, which only --dry-run takes "
        "(model.shape); give the folder of a whole checkpoint"
    )


def _model_config(folder: Path) -> Any:
    from transformers import AutoConfig

    config = _read_by(AutoConfig.from_pretrained, folder, folder / "config.json")
    if "sliding_attention" in getattr(config.get_text_config(), "layer_types", ()):
        raise ValueError(
            f"{folder / 'config.json'}: its language model has sliding-window layers, which the learner does not "
            "support; set use_sliding_window to false there"
        )
    return config


def _check_positions(folder: Path, config: Any) -> None:
    """Check that the rotary embedding's three sections (time, height, width) make up half of a head."""
    text = config.get_text_config()
    sections = (text.rope_parameters or {}).get("mrope_section")
    half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
    sizes = sections if isinstance(sections, list) else []
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes) or sum(sizes) != half:
        raise ValueError(
            f"{folder / 'config.json'}: mrope_section is {sections!r}; allowed: three whole numbers above 0 with the "
            f"sum {half}, half of the size of a head; {_OF_THE_SOURCE}"
        )


def _check_ids(folder: Path, config: Any) -> None:
    """Check that the ids which end an answer, or stand for images, are rows of the embedding."""
    size = config.get_text_config().vocab_size
    settings = read_json(folder / "config.json")
    given = [("config.json", settings, (_END, *FAMILIES[config.model_type].special_tokens))]
    given.append(("config.json", settings.get("text_config") or {}, (_END,)))
    if (folder / "generation_config.json").exists():
        given.append(("generation_config.json", read_json(folder / "generation_config.json"), (_END, "pad_token_id")))
    for file, found, keys in given:
        for key in keys:
            ids = found.get(key)
            for each in ids if isinstance(ids, list) else [] if ids is None else [ids]:
                if type(each) is not int or not 0 <= each < size:
                    raise ValueError(
                        f"{folder / file}: {key} is {ids!r}; allowed: ids from 0 to {size - 1}, the last row of the "
                        f"model's embeddings; {_OF_THE_SOURCE}"
                    )


def _check_weights(folder: Path, config: Any) -> None:
    """Compare the headers with the model that the configuration describes, built without memory."""
    import torch
    from transformers import AutoModelForImageTextToText

    stored = {checkpoint_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    with torch.device("meta"):
        model = _read_by(AutoModelForImageTextToText.from_config, config, folder / "config.json")
    expected = {checkpoint_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # A tied head is no parameter of its own, but the files may hold one all the same.
    tied = is_tied(folder)
    expected[HEAD] = tuple(model.lm_head.weight.shape)
    for name, shape in expected.items():
        if name not in stored:
            if name == HEAD and tied:
                continue
            raise ValueError(f"{folder}: its weights lack the tensor {name!r}; {_AGAIN}")
        tensor = stored[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{folder / tensor.file}: the tensor {name!r} has shape {tensor.shape}, by config.json {shape}; "
                f"{_AGAIN}"
            )
        if tensor.dtype not in _FLOATS:
            raise ValueError(
                f"{folder / tensor.file}: the tensor {name!r} is of type {tensor.dtype}; allowed: "
                f"{', '.join(sorted(_FLOATS))}. Give the model as it was before it was quantized"
            )
    if unknown := sorted(stored.keys() - expected.keys()):
        raise ValueError(
            f"{folder / stored[unknown[0]].file}: the tensor {unknown[0]!r} is not part of the model that config.json "
            f"describes; {_AGAIN}"
        )


def _check_numbers(folder: Path) -> None:
    """Check that the weights are finite.

    Reads only what takes a second or two of a large model: tensors of up to `_READ_WHOLE` numbers (norms, biases)
    whole, of each larger one a few rows. So it finds a training that diverged, not a single number.
    """
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is not a mapping
                tensor = tensors.get_slice(name)
                rows = tensor.get_shape()[0]
                whole = math.prod(tensor.get_shape()) <= _READ_WHOLE
                starts = [k * (rows - 1) // (_READ_ROWS - 1) for k in range(_READ_ROWS)]
                parts = [tensor[:]] if whole else [tensor[start : start + 1] for start in starts]
                if not all(part.isfinite().all() for part in parts):
                    raise ValueError(
                        f"{folder / file}: the tensor {name!r} holds numbers that are not finite (NaN or infinity), as "
                        "after a training that diverged; give an earlier checkpoint, or download it again"
                    )


def _check_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise ValueError(f"{folder}: has no tokenizer ({' or '.join(_TOKENIZER_FILES[:2])}); {_OF_THE_SOURCE}")
    file = next(folder / name for name in _TOKENIZER_FILES if (folder / name).exists())
    tokenizer = _read_by(AutoTokenizer.from_pretrained, folder, file)
    vocabulary = load_vocabulary(folder)
    known = tokenizer.get_vocab()
    if (last := max(known.values())) >= vocabulary.size:
        raise ValueError(
            f"{folder}: its tokenizer has the id {last}, but the model only {vocabulary.size} rows of embeddings; "
            "resize the embeddings (resize_token_embeddings) after adding tokens"
        )
    if known.get(IMAGE_PAD) != vocabulary.image_pad:
        raise ValueError(
            f"{folder}: the tokenizer's id of {IMAGE_PAD} is {known.get(IMAGE_PAD)}, config.json's image_token_id "
            f"{vocabulary.image_pad}; {_OF_THE_SOURCE} (tokenizer and config.json)"
        )
    template = chat_template(folder, tokenizer)
    if template is None:
        raise ValueError(
            f"{folder}: has no chat template (chat_template.jinja, chat_template.json, or in tokenizer_config.json); "
            f"{_OF_THE_SOURCE}"
        )
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    try:
        text = tokenizer.apply_chat_template(turn, chat_template=template, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise ValueError(
            f"{folder}: its chat template cannot write a turn with an image ({type(error).__name__}: {error}); "
            f"{_OF_THE_SOURCE} (chat_template.json or chat_template.jinja)"
        ) from None
    if (images := text.count(IMAGE_PAD)) != 1:
        raise ValueError(
            f"{folder}: its chat template writes {images} {IMAGE_PAD} tokens for one image, not 1; {_OF_THE_SOURCE} "
            "(chat_template.json or chat_template.jinja)"
        )


def _check_lengths(folder: Path, config: Config) -> None:
    settings = read_json(folder / "config.json")
    longest = settings.get("text_config", settings).get("max_position_embeddings")
    rollout = config.rollout
    if isinstance(longest, int) and rollout.max_prompt_tokens + rollout.max_tokens > longest:
        raise ValueError(
            f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} and rollout.max_tokens={rollout.max_tokens} are "
            f"{rollout.max_prompt_tokens + rollout.max_tokens:,} tokens together, and the model has {longest:,} "
            f"positions (max_position_embeddings in {folder / 'config.json'}); lower one of the two"
        )


def _check_image_size(folder: Path, size: int) -> None:
    from transformers import AutoImageProcessor

    def load(path: Path) -> Any:
        # The PIL backend does not need torchvision.
        return AutoImageProcessor.from_pretrained(path, backend="pil")

    file = next(folder / name for name in _PROCESSOR_FILES if (folder / name).exists())
    processor = _read_by(load, folder, file)
    if not hasattr(processor, "get_number_of_image_patches"):
        name = type(processor).__name__
        raise ValueError(f"{file}: {name} is not the image processor of this model; {_OF_THE_SOURCE}")
    vision = read_json(folder / "config.json").get("vision_config", {})
    for key, other in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if vision.get(other, getattr(processor, key)) != getattr(processor, key):
            raise ValueError(
                f"{file}: {key} is {getattr(processor, key)}, but config.json has {other} {vision[other]}; "
                f"{_OF_THE_SOURCE}"
            )
    side = processor.patch_size * processor.merge_size

    def tokens(pixels: int) -> int:
        return int(processor.get_number_of_image_patches(pixels, pixels)) // int(processor.merge_size) ** 2

    wanted = max(1, round(size / side)) ** 2
    if tokens(size) != wanted:
        fitting = [k * side for k in range(1, _LONGEST_SIDE // side) if tokens(k * side) == k**2]
        raise ValueError(
            f"data.image_size={size}: the image processor of {folder} makes {tokens(size):,} visual tokens of such an "
            f"image, not {wanted:,}; allowed: {fitting[0]} to {fitting[-1]}, or change min_pixels and max_pixels in "
            f"its {file.name}"
        )


def _read_by(reader: Callable[[Any], T], given: Any, file: Path) -> T:
    """Return what a reader of transformers makes of a folder; any failure of it becomes one line that names a file."""
    try:
        return reader(given)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: transformers cannot read it ({type(error).__name__}: {said}); {_AGAIN}") from None


_AGAIN = "copy or download the checkpoint again"
_LONGEST_SIDE = 8192
