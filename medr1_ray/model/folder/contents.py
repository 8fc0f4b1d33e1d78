"""What a model folder's configuration, weights and tokenizer hold, read as transformers and safetensors read them."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from medr1_ray.model.family import FAMILIES, HEAD, checkpoint_name
from medr1_ray.model.folder.files import AGAIN, read_by, tokenizer_file, without_filling
from medr1_ray.model.folder.kinds import OF_THE_SOURCE
from medr1_ray.model.vocabulary import IMAGE_PAD, START_OF_TURN, STOP_TOKENS, chat_template, load_vocabulary
from medr1_ray.model.weight_files import is_tied, read_json, stored_tensors, weight_files

_FLOATS = {"F64", "F32", "F16", "BF16"}
_END = "eos_token_id"
# Of the rotary embedding: the values by which vLLM 0.32 and transformers compute the same. vLLM scales it (YaRN) in
# its own way, refuses a `type` that is not the `rope_type`, and alone reads the last three. transformers turns the
# `mrope` of published models into `default`.
_ROPE: dict[str, tuple[object, ...]] = {
    "rope_type": ("default", "mrope"),
    "type": ("default", "mrope"),
    "mrope_interleaved": (False, None),
    "partial_rotary_factor": (1,),
    "rope_dim": (None,),
}
_VISION_THETA = 10000
_READ_WHOLE, _READ_ROWS = 2**18, 4
# What tokenizers treat in different ways: spaces, digits, marks, new lines, composed and decomposed letters, options.
_PROBE = "  What's the size of it, 12.5 cm?\nA) a T2-weighted lung; B) 3,5 °C\r\n\n\tC) Mu\u0308ller's é... D) x-ray \n"
# Of two lines, as every question with options: a template that writes a turn's Python value would write one.
_QUESTION, _SYSTEM = "What does the image show?\nA. a lung", "Answer with a letter."


def check_contents(folder: Path, system_message: bool) -> None:
    """Raises ValueError as `check_folder`; the folder has passed `files.require_checkpoint`."""
    config = model_config(folder)
    _check_weights(folder, config)
    _check_positions(folder, config)
    _check_ids(folder, config)
    _check_numbers(folder)
    _check_template(folder, _check_tokenizer(folder), system_message)


def model_config(folder: Path) -> Any:
    """Return what transformers reads from config.json. Raises ValueError as `check_folder`."""
    from transformers import AutoConfig

    config = read_by(AutoConfig.from_pretrained, folder, folder / "config.json")
    if "sliding_attention" in getattr(config.get_text_config(), "layer_types", ()):
        raise ValueError(
            f"{folder / 'config.json'}: its language model has sliding-window layers, which the learner does not "
            "support; set use_sliding_window to false there"
        )
    return config


def _check_positions(folder: Path, config: Any) -> None:
    """Check that engine and learner compute the same rotary embedding.

    Its three sections (time, height, width) make up half of a head.
    """
    text = config.get_text_config()
    given = text.rope_parameters or {}
    for key, same in _ROPE.items():
        if key in given and given[key] not in same:
            raise ValueError(
                f"{folder / 'config.json'}: {key} of rope_parameters, or rope_scaling, is {given[key]!r}, which engine "
                f"and learner compute differently for these models; allowed: {' or '.join(map(str, same))}; "
                f"{OF_THE_SOURCE}"
            )
    theta = (config.vision_config.rope_parameters or {}).get("rope_theta", _VISION_THETA)
    if theta != _VISION_THETA:
        raise ValueError(
            f"{folder / 'config.json'}: rope_theta of vision_config is {theta!r}, which engines do not read; allowed: "
            f"{_VISION_THETA}; {OF_THE_SOURCE}"
        )
    sections = given.get("mrope_section")
    half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
    sizes = sections if isinstance(sections, list) else []
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes) or sum(sizes) != half:
        raise ValueError(
            f"{folder / 'config.json'}: mrope_section is {sections!r}; allowed: three whole numbers above 0 with the "
            f"sum {half}, half of the size of a head; {OF_THE_SOURCE}"
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
                        f"model's embeddings; {OF_THE_SOURCE}"
                    )


def _check_weights(folder: Path, config: Any) -> None:
    """Compare the headers with the model that the configuration describes, built without memory."""
    import torch
    from transformers import AutoModelForImageTextToText

    stored = {checkpoint_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    with torch.device("meta"):
        model = read_by(AutoModelForImageTextToText.from_config, config, folder / "config.json")
    expected = {checkpoint_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # A tied head is no parameter of its own, but the files may hold one all the same.
    tied = is_tied(folder)
    expected[HEAD] = tuple(model.lm_head.weight.shape)
    for name, shape in expected.items():
        if name not in stored:
            if name == HEAD and tied:
                continue
            raise ValueError(f"{folder}: its weights lack the tensor {name!r}; {AGAIN}")
        tensor = stored[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{folder / tensor.file}: the tensor {name!r} has shape {tensor.shape}, by config.json {shape}; "
                f"{AGAIN}"
            )
        if tensor.dtype not in _FLOATS:
            raise ValueError(
                f"{folder / tensor.file}: the tensor {name!r} is of type {tensor.dtype}; allowed: "
                f"{', '.join(sorted(_FLOATS))}. Give the model as it was before it was quantized"
            )
    if unknown := sorted(stored.keys() - expected.keys()):
        raise ValueError(
            f"{folder / stored[unknown[0]].file}: the tensor {unknown[0]!r} is not part of the model that config.json "
            f"describes; {AGAIN}"
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


def _check_tokenizer(folder: Path) -> Any:
    """Return the tokenizer, if its ids are the model's."""
    from transformers import AutoTokenizer

    file = tokenizer_file(folder)
    tokenizer = read_by(AutoTokenizer.from_pretrained, folder, f"{file}, with tokenizer_config.json")
    _check_tokens(folder, file, tokenizer)
    vocabulary = load_vocabulary(folder)
    known = tokenizer.get_vocab()
    token, last = max(known.items(), key=lambda item: item[1])
    if last >= vocabulary.size:
        raise ValueError(
            f"{folder}: its tokenizer ({file.name}, tokenizer_config.json) has the id {last}, of {token!r}, but the "
            f"model only {vocabulary.size} rows of embeddings; resize the embeddings (resize_token_embeddings) after "
            "adding tokens"
        )
    if known.get(IMAGE_PAD) != vocabulary.image_pad:
        raise ValueError(
            f"{folder}: the tokenizer's id of {IMAGE_PAD} is {known.get(IMAGE_PAD)}, config.json's image_token_id "
            f"{vocabulary.image_pad}; {OF_THE_SOURCE} (tokenizer and config.json)"
        )
    return tokenizer


def _check_tokens(folder: Path, file: Path, tokenizer: Any) -> None:
    """Check that transformers cuts texts as tokenizer.json says; by a wrong or missing class it does otherwise."""
    from tokenizers import Tokenizer

    if file.name != "tokenizer.json":
        return
    own = read_by(Tokenizer.from_file, str(file), file)
    without_filling(own)
    ids, of_file = tokenizer.encode(_PROBE, add_special_tokens=False), own.encode(_PROBE, add_special_tokens=False).ids
    if ids == of_file:
        return
    pairs = enumerate(zip(ids, of_file, strict=False))
    first = next((number for number, pair in pairs if pair[0] != pair[1]), min(len(ids), len(of_file)))
    found, wanted = (each[first : first + 3] for each in (ids, of_file))
    settings = folder / "tokenizer_config.json"
    why = f"by tokenizer_class in {settings.name}" if settings.exists() else f"because {settings.name} is missing"
    raise ValueError(
        f"{folder}: transformers reads {file.name} as a {type(tokenizer).__name__}, {why}, which makes other tokens of "
        f"a text ({found} instead of {wanted} at its token {first}); copy {settings.name} from the model that this one "
        "was made from"
    )


def _check_template(folder: Path, tokenizer: Any, system_message: bool) -> None:
    """Check that the chat template writes the image and all texts of a prompt, and opens a turn to answer in.

    The latter is asked of templates with Qwen's turns alone; others may end with the question.
    """
    template = read_by(lambda path: chat_template(path, tokenizer), folder, f"{folder}: its chat template")
    if template is None:
        raise ValueError(
            f"{folder}: has no chat template (chat_template.jinja, chat_template.json, or in tokenizer_config.json); "
            f"{OF_THE_SOURCE}"
        )

    def write(chat: list[dict[str, Any]]) -> str:
        return str(
            tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
        )

    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]}]
    if system_message:
        chat.insert(0, {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]})
    try:
        text = write(chat)
    except Exception as error:
        what, instead = "a turn with an image", ""
        if system_message:
            with suppress(Exception):
                write(chat[1:])
                what, instead = "the system message that prompt.system gives", "set prompt.system=null, or "
        said = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: its chat template cannot write {what} ({type(error).__name__}: {said}); {instead}"
            f"{OF_THE_SOURCE} (chat_template.json or chat_template.jinja)"
        ) from None
    if (images := text.count(IMAGE_PAD)) != 1:
        raise ValueError(
            f"{folder}: its chat template writes {images} {IMAGE_PAD} tokens for one image, not 1; {OF_THE_SOURCE} "
            "(chat_template.json or chat_template.jinja)"
        )
    lost = "question into the user's turn" if _QUESTION not in _users_turn(text) else None
    if lost is None and system_message and _SYSTEM not in text:
        lost = "system message (prompt.system)"
    if lost:
        raise ValueError(
            f"{folder}: its chat template does not write the text of the {lost}, so that the model would not see it; "
            f"{OF_THE_SOURCE} (chat_template.json or chat_template.jinja)"
        )
    if START_OF_TURN in text and f"{START_OF_TURN}assistant" not in text.rpartition(_QUESTION)[2]:
        raise ValueError(
            f"{folder}: its chat template opens no turn of the assistant after the user's (where add_generation_prompt "
            f"is true), so that the model would not answer; {OF_THE_SOURCE} (chat_template.json or chat_template.jinja)"
        )


def _users_turn(text: str) -> str:
    """Return what a template wrote as the turn of the user, or all where it divides no turns as Qwen's do."""
    if START_OF_TURN not in text:
        return text
    return text.partition(f"{START_OF_TURN}user")[2].partition(STOP_TOKENS[0])[0]
