"""Files of the driver's that the nodes of a run must see: of its run directory, and of the model."""

from __future__ import annotations

from medr1_ray.base.shared_file import SharedFile
from medr1_ray.config import Config

DriverFiles = tuple[SharedFile, ...]


def driver_files(config: Config) -> DriverFiles:
    """Leave a mark in the run directory; return it and, except for the tiny model, the model's config.json.

    Data and images are read on the driver's node alone. The tiny model comes with the package.
    """
    run, model = config.run.dir, config.model.folder
    mark = SharedFile.mark("run.dir", run, run / "logs" / ".driver")
    if config.model.path == "tiny":
        return (mark,)
    return mark, SharedFile.of("model.path", model, model / "config.json")
