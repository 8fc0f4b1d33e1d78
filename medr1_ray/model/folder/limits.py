"""What a model, its image processor and the settings must agree on: positions, patches, and the size of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medr1_ray.config import Config
from medr1_ray.model.folder.files import processor_file, read_by
from medr1_ray.model.folder.kinds import COUNT, FLAG, OF_THE_SOURCE, POSITIVE, Kind, check_value, is_number
from medr1_ray.model.weight_files import read_json

_LONGEST_SIDE = 8192
_WHITE = 255
_LARGEST_VALUE = 10
_LEAST_CONTRAST = 0.1
_COLOURS = Kind("three numbers", lambda value: _are_three(value) and all(map(is_number, value)))
_SPREADS = Kind("three numbers above 0", lambda value: _are_three(value) and all(map(POSITIVE.fits, value)))
# The integers of Pillow's filters, or a member of its enumeration, which is the default.
_FILTER = Kind(
    "a whole number from 0 to 5",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 5,
)


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


def check_image_size(folder: Path, vision: Any, size: int) -> None:
    """Raises ValueError where the image processor would change images of size x size pixels, or is not the model's.

    Args:
        vision: what transformers reads from config.json about the vision tower.
    """
    from transformers import AutoImageProcessor

    def load(path: Path) -> Any:
        # The PIL backend does not need torchvision.
        return AutoImageProcessor.from_pretrained(path, backend="pil")

    file = processor_file(folder)
    processor = read_by(load, folder, file)
    if not hasattr(processor, "get_number_of_image_patches"):
        name = type(processor).__name__
        raise ValueError(f"{file}: {name} is not the image processor of this model; {OF_THE_SOURCE}")
    _check_processor(file, processor, vision)
    side = processor.patch_size * processor.merge_size

    def tokens(pixels: int) -> int:
        return int(processor.get_number_of_image_patches(pixels, pixels)) // int(processor.merge_size) ** 2

    wanted = max(1, round(size / side)) ** 2
    if tokens(size) != wanted:
        fitting = [k * side for k in range(1, _LONGEST_SIDE // side) if tokens(k * side) == k**2]
        allowed = f"allowed: {fitting[0]} to {fitting[-1]}, or change" if fitting else "no size fits; change"
        raise ValueError(
            f"data.image_size={size}: the image processor of {folder} makes {tokens(size):,} visual tokens of such an "
            f"image, not {wanted:,}; {allowed} min_pixels and max_pixels in its {file.name}"
        )


def _check_processor(file: Path, processor: Any, vision: Any) -> None:
    """Check what cuts images into patches; transformers takes any values for it until there is an image."""
    for key, other in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        given, models = getattr(processor, key), getattr(vision, other)
        if type(given) is not int or given != models:
            raise ValueError(
                f"{file}: {key} is {given!r}; allowed: {models!r}, the {other} in config.json; {OF_THE_SOURCE}"
            )
    kinds = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), FLAG)
    if processor.do_normalize:
        kinds |= {"image_mean": _COLOURS, "image_std": _SPREADS}
    if processor.do_rescale:
        kinds |= {"rescale_factor": POSITIVE}
    if processor.do_resize:
        kinds |= {"resample": _FILTER}
    for key, kind in kinds.items():
        check_value(file, key, getattr(processor, key), kind)
    _check_values(file, processor)
    least, most = processor.size.shortest_edge, processor.size.longest_edge
    check_value(file, "shortest_edge of size, or min_pixels,", least, COUNT)
    check_value(file, "longest_edge of size, or max_pixels,", most, COUNT)
    if least > most:
        raise ValueError(
            f"{file}: shortest_edge of size, or min_pixels, is {least}, more than its longest_edge, or max_pixels, "
            f"{most}; {OF_THE_SOURCE}"
        )


def _check_values(file: Path, processor: Any) -> None:
    """Check what values pixels get: towers are trained on some from about -2 to 2."""
    scale = processor.rescale_factor if processor.do_rescale else 1
    means, spreads = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0,), (1,))
    for mean, spread in zip(means, spreads, strict=True):
        black, white = ((pixel * scale - mean) / spread for pixel in (0, _WHITE))
        if max(-black, white) > _LARGEST_VALUE or white - black < _LEAST_CONTRAST:
            names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
            given = ", ".join(f"{name} {getattr(processor, name)}" for name in names)
            raise ValueError(
                f"{file}: with {given} pixels get values from {black:.4g} to {white:.4g}; allowed: from "
                f"-{_LARGEST_VALUE} to {_LARGEST_VALUE}, at least {_LEAST_CONTRAST} apart (most often by do_rescale "
                f"true and rescale_factor 1/255); {OF_THE_SOURCE}"
            )


def _are_three(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3
