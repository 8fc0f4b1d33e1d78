"""`python -m medr1_ray.data.prepare --root OmniMedVQA --out DIR`: check a dataset once, write manifest and splits.

Reads every annotation file below `QA_information` and every image that they name. The manifest lists what cannot be
used, with the reason. If interrupted, the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medr1_ray.base.command_line import Ending, run_to_status
from medr1_ray.data.prepare.image_facts import ImageFacts
from medr1_ray.data.prepare.image_scan import facts_of_images
from medr1_ray.data.prepare.leakage import leakage
from medr1_ray.data.prepare.recipes import grouped_splits, released_families, released_splits
from medr1_ray.data.prepare.scans import scan_of
from medr1_ray.data.prepare.writing import write_prepared, write_split
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.omnimedvqa import QUESTIONS, file_name, read_annotation_file
from medr1_ray.data.readers.prepared import PARTS
from medr1_ray.data.readers.rows import relative_path
from medr1_ray.types import Question


def prepare(root: Path, out: Path, medr1: Path | None, seed: int, workers: int) -> None:
    """Prepare the dataset at `root` (OmniMedVQA's layout) and, if given, the splits of Med-R1's files at `medr1`.

    Raises:
        ValueError: if `root` or `medr1` holds no annotation files.
    """
    if medr1:
        released_families(medr1)  # before hours of reading images
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    started = time.monotonic()
    rows = _read_rows(root)
    paths = sorted({row.image_path for row in rows if row.image_path is not None})
    out.mkdir(parents=True, exist_ok=True)
    facts = facts_of_images(root, paths, out / "images.jsonl", workers)
    rows = [_with_image(row, facts) for row in rows]
    account = write_prepared(out, root, rows)
    seconds = time.monotonic() - started
    print(
        f"{account['rows']} rows, {account['questions']} questions on {account['images']} images: "
        f"{seconds:.0f} s, {len(rows) / seconds:.0f} rows/s"
    )
    for what, title in (("left_out", "left out"), ("remarks", "used, but unusual")):
        for reason, rest in account[what].items():
            print(f"{title}: {rest['rows']} rows: {reason} ({', '.join(rest['first'])}, ...)")
    splits = list(grouped_splits(rows, seed))
    if medr1:
        splits += released_splits(rows, root, medr1)
    by_id = {row.id: row for row in rows}
    for split in splits:
        parts = {part: [by_id[id_] for id_ in split.parts[part]] for part in PARTS}
        leakages = {part: leakage(parts["train"], parts[part]) for part in PARTS[1:]}
        digest = write_split(out, split, rows, leakages)
        counts = ", ".join(f"{part} {len(members)}" for part, members in parts.items())
        print(f"split {split.name}: {counts}; digest {digest}")
        for reason, count in split.left_out.items():
            print(f"  left out: {reason}: {count}")
        for part, leak in leakages.items():
            if leak:
                print(f"  {part}: {leak.description}")


def _read_rows(root: Path) -> list[ManifestRow]:
    """Return every row, in the order of files and rows, without facts about the images."""
    folder = root / QUESTIONS
    # Includes files without the suffix .json and folders at the second level, so that the manifest lists them.
    files = sorted(
        path
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.parent != folder or path.suffix == ".json" or not path.is_dir()
    )
    if not files:
        raise ValueError(
            f"--root {root}: no annotation files in {folder}; give the folder of OmniMedVQA that holds QA_information "
            "and Images"
        )
    return [row for file in files for row in _read_file(root, file)]


def _read_file(root: Path, file: Path) -> list[ManifestRow]:
    name, path = file_name(root, file), relative_path(root, file)
    if file.suffix != ".json":
        return [ManifestRow(path, path, None, left_out="file is no annotation file (.json)")]
    try:
        result = read_annotation_file(root, file, images_needed=False)
    except ValueError as error:
        return [ManifestRow(name, path, None, left_out="file cannot be read", remark=str(error))]
    rows = [
        ManifestRow(f"{name}:{row.row}", path, row.row, left_out=row.reason) for row in result.dropped
    ] + [_row_of(root, path, question) for question in result.questions]
    # Dropped rows and questions come from two lists; this restores the order of the file.
    return sorted(rows, key=lambda row: row.row or 0)


def _row_of(root: Path, file: str, question: Question) -> ManifestRow:
    image = relative_path(root, question.image_path)
    return ManifestRow(
        id=question.id,
        file=file,
        row=int(question.id.rpartition(":")[2]),
        dataset=question.dataset,
        modality=question.modality,
        question_type=question.question_type,
        stem=question.stem,
        options=question.options,
        gold_letter=question.gold_letter,
        gold_text=question.options[question.answer],
        image_path=image,
        scan=scan_of(image),
    )


def _with_image(row: ManifestRow, facts: Mapping[str, ImageFacts]) -> ManifestRow:
    if row.left_out or row.image_path is None:
        return row
    image = facts[row.image_path]
    return replace(
        row,
        image_hash=image.image_hash,
        perceptual_hash=image.perceptual_hash,
        width=image.width,
        height=image.height,
        left_out=image.left_out,
        remark=image.remark,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m medr1_ray.data.prepare", description="Check OmniMedVQA once; write a manifest and splits."
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that holds QA_information and Images")
    parser.add_argument(
        "--out", type=Path, required=True, help="a new folder, or one that this command wrote earlier"
    )
    parser.add_argument(
        "--medr1", type=Path, help="folder of Med-R1's released annotation files, e.g. ROOT/Splits"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default: 0)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="number of processes that read images (default: number of cores)",
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: give a number of 1 or more")

    def work(ending: Ending) -> int:
        ending.how_to_go_on = lambda: "the same command continues"
        prepare(options.root, options.out, options.medr1, options.seed, options.workers)
        return 0

    return run_to_status(work)


if __name__ == "__main__":
    sys.exit(main())
