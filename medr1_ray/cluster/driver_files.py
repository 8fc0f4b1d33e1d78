"""Files of the driver's that the nodes of a run must see: of its run directory, and of the model."""

from __future__ import annotations

from medr1_ray.base.shared_file import SharedFile
from medr1_ray.config import Config

DriverFiles = tuple[SharedFile, ...]


def driver_files(config: Config) -> DriverFiles:
    """Leave a mark in the run directory; return it and `model_files`."""
    run = config.run.dir
    return (SharedFile.mark("run.dir", run, run / "logs" / ".driver"), *model_files(config))


def model_files(config: Config) -> DriverFiles:
    """Return the model's config.json; nothing for the tiny model, which comes with the package."""
    model = config.model.folder
    return () if config.model.path == "tiny" else (SharedFile.of("model.path", model, model / "config.json"),)
