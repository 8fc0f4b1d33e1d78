"""What the names of a model folder's files tell, and its small files, without transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from medr1_ray.base.manifest import MANIFEST_FILE, find_damage
from medr1_ray.model.family import FAMILIES, refuse_own_code
from medr1_ray.model.folder.kinds import OF_THE_SOURCE, check_kinds
from medr1_ray.model.weight_files import LEARNER_STATE, read_json

AGAIN = "copy or download the checkpoint again"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What looks like an id of the hub, and is a path that people have.
_LOCAL = {"models", "runs", "checkpoints"}
_READ_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors")
_POINTER_START = b"version https://git-lfs"
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")

T = TypeVar("T")


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
            settings = read_json(folder / name)
            refuse_own_code(folder / name, settings)
            check_kinds(folder / name, settings)
    if not any(name.endswith(".safetensors") or name == "model.safetensors.index.json" for name in files):
        raise ValueError(f"{folder}: {_without_safetensors(files)}")


def check_manifest(folder: Path) -> None:
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
    # A tuple, because a list or a mapping from the file cannot be looked up in a dictionary.
    if settings.get("model_type") not in tuple(FAMILIES):
        raise ValueError(
            f"{path}: a model of type {settings.get('model_type')!r}; allowed: {', '.join(FAMILIES)}. Give a "
            "checkpoint of one of these families"
        )
    if (given := settings.get("quantization_config")) is not None:
        method = given.get("quant_method", "some method") if isinstance(given, dict) else given
        raise ValueError(
            f"{path}: the model is quantized ({method}) by its quantization_config, which cannot be trained; give the "
            "original one"
        )


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


def processor_file(folder: Path) -> Path:
    """Return the file from which transformers takes the image processor's settings.

    Raises ValueError where there is none.
    """
    own, shared = (folder / name for name in _PROCESSOR_FILES)
    if shared.exists() and read_json(shared).get("image_processor") is not None:
        return shared
    if not own.exists():
        raise ValueError(f"{folder}: has no image processor ({' or '.join(_PROCESSOR_FILES)}); {OF_THE_SOURCE}")
    return own


def tokenizer_file(folder: Path) -> Path:
    """Return the file from which transformers takes the tokenizer. Raises ValueError where there is none."""
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{folder}: has no tokenizer ({' or '.join(_TOKENIZER_FILES[:2])}); {OF_THE_SOURCE}")


def count_tokens(folder: Path, text: str) -> int:
    """Return how many tokens the folder's tokenizer makes of a text, with no special ones around it.

    Raises:
        ValueError: the tokenizer cannot be read.
    """

    def count(file: Path) -> int:
        if file.name == "tokenizer.json":
            # What transformers reads it with; by itself it is imported in no time.
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(file))
            without_filling(tokenizer)
            return len(tokenizer.encode(text, add_special_tokens=False).ids)
        from transformers import AutoTokenizer

        return len(AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False))

    return read_by(count, file := tokenizer_file(folder), file)


def without_filling(tokenizer: Any) -> None:
    """Let a tokenizer of `tokenizers` neither cut texts nor fill them up, as may be stored in its file after a training
    that did; transformers sets both anew in each call."""
    tokenizer.no_truncation()
    tokenizer.no_padding()


def read_by(reader: Callable[[Any], T], given: Any, file: object) -> T:
    """Return what a reader of transformers makes of a folder; any failure of it becomes one line that names `file`."""
    try:
        return reader(given)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: transformers cannot read it ({type(error).__name__}: {said}); {AGAIN}") from None
