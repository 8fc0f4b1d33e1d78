"""Write phantoms: `python -m medr1_ray.data.phantoms --out DIR --images N --seed S [--size PIXELS]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from medr1_ray.data.phantoms.write import ensure_dataset


def main() -> None:
    """Read the command line and write the dataset unless the directory already holds it."""
    parser = argparse.ArgumentParser(prog="python -m medr1_ray.data.phantoms", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="a new or empty directory, or one that holds this dataset"
    )
    parser.add_argument("--images", type=int, required=True, help="number of images")
    parser.add_argument(
        "--seed", type=int, required=True, help="0 or more; different seeds give different phantoms"
    )
    parser.add_argument(
        "--size", type=int, default=112, help="longer side of the images in pixels (default: 112)"
    )
    arguments = parser.parse_args()
    try:
        ensure_dataset(arguments.out, arguments.images, arguments.seed, arguments.size)
    except ValueError as error:
        parser.error(str(error))
    print(f"{arguments.out}: {arguments.images} phantoms")


if __name__ == "__main__":
    main()
