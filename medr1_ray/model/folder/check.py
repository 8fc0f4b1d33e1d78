"""The whole check of a model folder, cheapest parts first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medr1_ray.config import Config
from medr1_ray.model.folder.contents import check_contents, model_config
from medr1_ray.model.folder.files import (
    AGAIN,
    check_manifest,
    processor_file,
    require_checkpoint,
    tokenizer_file,
)
from medr1_ray.model.folder.limits import check_image_size, check_lengths
from medr1_ray.model.weight_files import stored_tensors


def stay_offline() -> None:
    """Keep huggingface_hub from looking anything up; call it before transformers or vLLM are imported."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def check_model_files(config: Config) -> None:
    """Check of the folder of `model.path` what needs none of the libraries, whose import takes seconds.

    Raises:
        ValueError: as `check_model`.
    """
    folder = config.model.folder
    with _said_of_model_path():
        require_checkpoint(folder)
        processor_file(folder)
        tokenizer_file(folder)
        stored_tensors(folder)
    check_lengths(folder, config)


def check_model(config: Config) -> None:
    """Check the folder of `model.path`, and that its image processor takes images of `data.image_size`.

    Raises:
        ValueError: with the folder, the file, what is wrong, and what to do.
    """
    check_model_files(config)
    folder = config.model.folder
    stay_offline()
    with _said_of_model_path():
        vision = model_config(folder).vision_config
    # Before the weights, for which transformers loads its model classes.
    check_image_size(folder, vision, config.data.image_size)
    with _said_of_model_path():
        check_folder(folder, system_message=config.prompt.system is not None)


@contextmanager
def _said_of_model_path() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from None
    except OSError as error:
        # For example a link of the hub's cache whose file was not copied with it.
        raise ValueError(
            f"model.path: {error.filename}: cannot be read ({error.strerror}); {AGAIN}, as files and not as links"
        ) from None


def check_folder(folder: Path, system_message: bool = False) -> None:
    """Check everything that a folder must have, without loading weights. Raises ValueError as `check_model`.

    Args:
        system_message: prompts begin with one (`prompt.system`), which the chat template must write too.
    """
    stay_offline()
    require_checkpoint(folder)
    check_manifest(folder)
    check_contents(folder, system_message)
    processor_file(folder)
