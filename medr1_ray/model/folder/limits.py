"""What a model and the settings must agree on: positions, and the size of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medr1_ray.config import Config
from medr1_ray.model.folder.files import OF_THE_SOURCE, processor_file, read_by
from medr1_ray.model.weight_files import read_json

_LONGEST_SIDE = 8192


def check_lengths(folder: Path, config: Config) -> None:
    """Raises ValueError where prompts and answers may be longer than the model has positions."""
    settings = read_json(folder / "config.json")
    longest = settings.get("text_config", settings).get("max_position_embeddings")
    rollout = config.rollout
    if isinstance(longest, int) and rollout.max_prompt_tokens + rollout.max_tokens > longest:
        raise ValueError(
            f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} and rollout.max_tokens={rollout.max_tokens} are "
            f"{rollout.max_prompt_tokens + rollout.max_tokens:,} tokens together, and the model has {longest:,} "
            f"positions (max_position_embeddings in {folder / 'config.json'}); lower one of the two"
        )


def check_image_size(folder: Path, size: int) -> None:
    """Raises ValueError where the image processor would change images of size x size pixels, or is not the model's."""
    from transformers import AutoImageProcessor

    def load(path: Path) -> Any:
        # The PIL backend does not need torchvision.
        return AutoImageProcessor.from_pretrained(path, backend="pil")

    file = processor_file(folder)
    processor = read_by(load, folder, file)
    if not hasattr(processor, "get_number_of_image_patches"):
        name = type(processor).__name__
        raise ValueError(f"{file}: {name} is not the image processor of this model; {OF_THE_SOURCE}")
    vision = read_json(folder / "config.json").get("vision_config", {})
    for key, other in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if vision.get(other, getattr(processor, key)) != getattr(processor, key):
            raise ValueError(
                f"{file}: {key} is {getattr(processor, key)}, but config.json has {other} {vision[other]}; "
                f"{OF_THE_SOURCE}"
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
