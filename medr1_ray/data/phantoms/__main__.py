"""Write phantoms: `python -m medr1_ray.data.phantoms --out DIR --images N --seed S [--size PIXELS]`."""

from __future__ import annotations

import sys

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.base.signs_of_life import still
from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import as_path, require_lasting
from medr1_ray.data.phantoms.write import ensure_dataset


def main(arguments: list[str] | None = None) -> int:
    """Write the dataset unless the directory already holds it; return the exit status."""
    parser = ArgumentParser(prog="python -m medr1_ray.data.phantoms", description=__doc__)
    parser.add_argument(
        "--out", type=as_path, required=True, help="a new or empty directory, or one that holds this dataset"
    )
    parser.add_argument("--images", type=int, required=True, help="number of images")
    parser.add_argument(
        "--seed", type=int, required=True, help="0 or more; different seeds give different phantoms"
    )
    parser.add_argument(
        "--size", type=int, default=112, help="longer side of the images in pixels (default: 112)"
    )
    options = parser.parse_args(arguments)

    def work(ending: Ending) -> int:
        ending.how_to_go_on = lambda: "the images are drawn anew by the same command"
        require_lasting("--out", options.out)
        require_writable(f"--out {options.out}", options.out)
        with still(f"drawing {options.images} phantoms"):
            ensure_dataset(options.out, options.images, options.seed, options.size)
        print(f"{options.out}: {options.images} phantoms")
        return 0

    return run_to_status(work)


if __name__ == "__main__":
    sys.exit(main())
