"""Settings of the questions and images of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medr1_ray.config.field_types import PositiveInt, Settings

Fraction = Annotated[float, Field(ge=0, le=1)]


class DataSettings(Settings):
    """Questions and images."""

    format: Literal["phantoms", "omnimedvqa", "medr1", "prepared"]
    root: Path
    """Folder of the dataset, for `prepared` the one that `medr1_ray.data.prepare` wrote. Phantoms are written below it,
    into a folder for their seed and number."""
    seed: int = 0
    """Seed of the phantoms and of the train / evaluation split."""
    train_file: str | None = None
    """For `medr1`: annotation file of the training rows, relative to `root`; with `*`, all files that match."""
    eval_file: str | None = None
    split: str = "grouped"
    """For `prepared`: a split in its folder `splits`."""
    eval_part: Literal["validation", "test"] = "validation"
    """For `prepared`: what a training run evaluates on."""
    phantom_images: PositiveInt = 6000
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the images (never of the rows) held out, where the format has no split of its own."""
    eval_questions: PositiveInt = 400
    image_size: Annotated[int, Field(ge=28, le=4096)] = 384
    image_fit: Literal["squash", "pad"] = "squash"
    modalities: tuple[str, ...] = ()
    """Keep only these (canonical names); empty keeps all."""
    question_types: tuple[str, ...] = ()
    sampling_weights: dict[str, float] = Field(default_factory=dict)
    """How often training questions of a modality or question type (by name) come, relative to the others; 1 where not
    named."""
    shuffle_options: bool = False
    """Give each training prompt its options in a random order, another one in each epoch."""
    pass_rates: Literal["online"] | Path | None = None
    """Filter training questions by how often they are answered rightly: a file of pass rates (JSON Lines: id,
    pass_rate; questions without one stay), or `online`, by their groups in this training: what was outside the limits
    rests for an epoch."""
    min_pass_rate: Fraction = 0.0
    max_pass_rate: Fraction = 1.0

    @model_validator(mode="after")
    def _pass_rates(self) -> Self:
        limits = f"data.min_pass_rate={self.min_pass_rate}, data.max_pass_rate={self.max_pass_rate}"
        if (self.pass_rates is None) != ((self.min_pass_rate, self.max_pass_rate) == (0, 1)):
            raise ValueError(
                f"data.pass_rates={self.pass_rates} with {limits}: give pass rates (online, or a file in JSON Lines: "
                "id, pass_rate) and limits narrower than 0 to 1 together, or neither"
            )
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(
                f"data.min_pass_rate={self.min_pass_rate} is above data.max_pass_rate={self.max_pass_rate}: no "
                "question would be left"
            )
        return self

    @property
    def online_pass_rate_limits(self) -> tuple[float, float] | None:
        """Lowest and highest pass rate of questions that are asked in each epoch; None without this filter."""
        return (self.min_pass_rate, self.max_pass_rate) if self.pass_rates == "online" else None
