"""Settings of a run's questions and images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medr1_ray.config.field_types import (
    Expanded,
    Float,
    Int,
    MayChange,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
)
from medr1_ray.config.table import TableSettings

Fraction = Annotated[Float, Field(ge=0, le=1)]


class DataSettings(Settings):
    """Source, filters and sampling of questions, and the size of images."""

    format: Literal["phantoms", "omnimedvqa", "medr1", "prepared", "table"]
    root: Annotated[Path, MayChange, Expanded]
    """Folder of the dataset, which a resumed run may find elsewhere; for `prepared`, the one written by
    `medr1_ray.data.prepare`. Phantoms are written below it, in one folder per seed and number of images."""
    seed: Seed = 0
    """Seed of the phantoms and of the train / evaluation split."""
    train_file: str | None = None
    """For `medr1`: annotation file of the training rows, relative to `root`; `*` is a wildcard for several files."""
    eval_file: str | None = None
    table: TableSettings | None = None
    """For `table`, and no other format."""
    image_root: Annotated[Path | None, MayChange, Expanded] = None
    """For `table`: folder that image paths are relative to, and must not lead out of; null is `root`."""
    split: str = "grouped"
    """For `prepared`: name of a split in the folder `splits`."""
    eval_part: Literal["validation", "test"] = "validation"
    """For `prepared`, and a table with parts of its own: the part that a training run evaluates on."""
    phantom_images: Annotated[Int, Field(ge=9)] = 6000
    """From 9 on some modality of the eight, which take turns, has two: one to train on and one to evaluate on."""
    eval_fraction: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the images (not of the rows) held out, where the format has no split of its own."""
    eval_questions: PositiveInt = 400
    image_size: Annotated[Int, Field(ge=28, le=4096)] = 384
    image_fit: Literal["squash", "pad"] = "squash"
    image_timeout_seconds: Annotated[PositiveFloat, MayChange] = 60.0
    """Limit for reading one image, which a file system that hangs would hold up for ever; the question is left out."""
    encoders: Annotated[PositiveInt, MayChange] = 1
    """Processes that encode questions and decode images, on the driver's node, each with four threads."""
    modalities: tuple[str, ...] = ()
    """Keep only these (canonical names); empty keeps all."""
    question_types: tuple[str, ...] = ()
    sampling_weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Relative frequency of training questions by modality or question type (canonical names); 1 for those not
    named."""
    shuffle_options: bool = False
    """Shuffle the options of each training prompt, anew in each epoch."""
    pass_rates: Annotated[Literal["online"] | Path | None, Expanded] = None
    """Filter training questions by pass rate, the fraction of correct answers. Either a file (JSON Lines: id,
    pass_rate; questions without an entry are kept), or `online`: measured on the groups of this run, where a question
    outside the limits is skipped for one epoch."""
    min_pass_rate: Fraction = 0.0
    max_pass_rate: Fraction = 1.0

    @model_validator(mode="after")
    def _pass_rates(self) -> Self:
        limits = f"data.min_pass_rate={self.min_pass_rate}, data.max_pass_rate={self.max_pass_rate}"
        if (self.pass_rates is None) != ((self.min_pass_rate, self.max_pass_rate) == (0, 1)):
            raise ValueError(
                f"data.pass_rates={self.pass_rates} with {limits}: set pass_rates (`online`, or a JSON Lines file of "
                "id and pass_rate) together with limits narrower than 0 to 1, or neither"
            )
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(
                f"data.min_pass_rate={self.min_pass_rate} is above data.max_pass_rate={self.max_pass_rate}: no "
                "question would be left"
            )
        return self

    @property
    def online_pass_rate_limits(self) -> tuple[float, float] | None:
        """Lowest and highest pass rate of questions that are asked in every epoch; None without the online filter."""
        return (self.min_pass_rate, self.max_pass_rate) if self.pass_rates == "online" else None
