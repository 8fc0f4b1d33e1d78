"""`python -m medr1_ray.data.prepare --table FILE --out DIR`: check a dataset once, write manifest and splits.

Reads a table, or with `--root` every annotation file of OmniMedVQA below `QA_information`, and every image that they
name. The manifest lists what cannot be used, with the reason. If interrupted, the same command continues where it
stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from medr1_ray.base.command_line import Ending, run_to_status
from medr1_ray.config import TableAnswers, TableColumns, TableSettings
from medr1_ray.data.prepare.grouping import Grouping, describe, regrouped
from medr1_ray.data.prepare.image_facts import ImageFacts
from medr1_ray.data.prepare.image_scan import facts_of_images
from medr1_ray.data.prepare.leakage import leakage
from medr1_ray.data.prepare.recipes import empty_or_far, grouped_splits, own_splits, released_splits
from medr1_ray.data.prepare.sources import Source, of_omnimedvqa, of_table
from medr1_ray.data.prepare.writing import write_prepared, write_split
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.prepared import PARTS, Split
from medr1_ray.data.readers.table.reader import TableReader

ROWS_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """How to prepare: the folder to write, what groups images (None: what the source says), the folder of Med-R1's
    files, the seed of the splits, the number of processes."""

    out: Path
    grouping: Grouping | None
    medr1: Path | None
    seed: int
    workers: int


def prepare(source: Source, plan: Plan) -> None:
    """Check the images of a source; write its manifest and splits.

    Raises:
        ValueError: if no row can be used, a part that is needed is empty, or `medr1` holds no annotation files.
    """
    started = time.monotonic()
    grouping = plan.grouping or source.grouping
    rows = regrouped(source.rows, grouping)
    paths = sorted({row.image_path for row in rows if row.image_path is not None})
    plan.out.mkdir(parents=True, exist_ok=True)
    facts = facts_of_images(source.root, paths, plan.out / "images.jsonl", plan.workers)
    rows = [_with_image(row, facts) for row in rows]
    account = write_prepared(plan.out, source.root, rows)
    seconds = time.monotonic() - started
    print(
        f"{account['rows']} rows, {account['questions']} questions on {account['images']} images: "
        f"{seconds:.0f} s, {len(rows) / seconds:.0f} rows/s"
    )
    for what, title in (("left_out", "left out"), ("remarks", "used, but unusual")):
        for reason, rest in account[what].items():
            print(f"{title}: {rest['rows']} rows: {reason} ({', '.join(rest['first'])}, ...)")
    if not account["questions"]:
        raise ValueError(
            "no row can be used, for the reasons above; mend the data and run this again (--table also reads answers "
            "that are letters or numbers, and other names of columns)"
        )
    print(describe(rows, grouping))
    splits = list(own_splits(rows, source.parts) if source.parts else grouped_splits(rows, plan.seed))
    _require_both_sides(splits[0], rows, grouping)
    if plan.medr1:
        splits += released_splits(rows, source.root, plan.medr1)
    by_id = {row.id: row for row in rows if row.left_out is None}
    for split in splits:
        parts = {part: [by_id[id_] for id_ in split.parts[part]] for part in PARTS}
        leakages = {part: leakage(parts["train"], parts[part]) for part in PARTS[1:]}
        digest = write_split(plan.out, split, rows, leakages)
        counts = ", ".join(f"{part} {len(members)}" for part, members in parts.items())
        print(f"split {split.name}: {counts}; digest {digest}")
        for reason, count in split.left_out.items():
            print(f"  left out: {reason}: {count}")
        if unusual := empty_or_far(split, rows):
            print(f"  NOTE: {unusual}")
        for part, leak in leakages.items():
            if leak:
                print(f"  {part}: {leak.description}")
    part = "" if splits[0].parts["validation"] else " data.eval_part=test"
    print(f"train on it with data.format=prepared data.root={plan.out} data.split={splits[0].name}{part}")


def _require_both_sides(split: Split, rows: Sequence[ManifestRow], grouping: Grouping) -> None:
    """Raise ValueError if there is nothing to train on, or nothing to evaluate on."""
    if split.parts["train"] and (split.parts["validation"] or split.parts["test"]):
        return
    counts = ", ".join(f"{part} {len(ids)}" for part, ids in split.parts.items())
    if split.seed is None:
        advice = "name both training and held-out rows, or split anew (--columns split=)"
    elif grouping == "images":
        advice = "add images, or divide all modalities together (--columns modality=)"
    else:
        advice = "--groups images splits image by image"
    raise ValueError(f"split {split.name}: {counts}: {empty_or_far(split, rows)}; {advice}")


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
        prog="python -m medr1_ray.data.prepare", description="Check a dataset once; write a manifest and splits."
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--root", type=Path, help="OmniMedVQA's folder, which holds QA_information and Images")
    data.add_argument("--table", type=Path, help="a table: CSV, TSV, JSON, JSON Lines, Parquet, or saved by `datasets`")
    parser.add_argument(
        "--out", type=Path, required=True, help="a new folder, or one that this command wrote earlier"
    )
    parser.add_argument("--image-root", type=Path, help="folder of a table's images (default: the table's folder)")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="KEY=NAME",
        help=f"columns of a table without a usual name; keys: {', '.join(TableColumns.model_fields)}",
    )
    parser.add_argument(
        "--answers", choices=get_args(TableAnswers), help="what a table's answers are (default: found out)"
    )
    parser.add_argument(
        "--groups",
        choices=get_args(Grouping),
        help="what splits keep whole (default: a table's group column, else images; with --root what paths tell)",
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
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out {options.out} is a file; give a folder")
        ending.how_to_go_on = lambda: "the same command continues"
        source = _source(options)
        prepare(source, Plan(options.out, options.groups, options.medr1, options.seed, options.workers))
        return 0

    return run_to_status(work)


def _source(options: argparse.Namespace) -> Source:
    """Return what is to be prepared; of a table, first print what its first rows are taken for."""
    if options.table is None:
        for name in ("image_root", "columns", "answers"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')} is for --table, not for --root; leave it out")
        if options.groups == "column":
            raise ValueError("--groups column is for --table; give paths or images with --root")
        return of_omnimedvqa(options.root)
    if options.medr1:
        raise ValueError("--medr1 is for --root, not for --table; leave it out")
    table: Path = options.table.absolute()
    root = options.image_root or (table if table.is_dir() else table.parent)
    if not root.is_dir():
        raise ValueError(f"--image-root {root} is not a folder; give the one that the table's image paths start from")
    settings = TableSettings(file=str(table), columns=_columns(options.columns), answers=options.answers)
    reader = TableReader(settings, table.parent, root, images_needed=False)
    print("\n".join([f"the first rows of {table}:", *reader.preview(ROWS_SHOWN)]), flush=True)
    source = of_table(reader, root, options.out)
    if options.groups == "column" and source.grouping != "column":
        raise ValueError(f"--groups column: {table} has no group column; name it with --columns group=NAME")
    return source


def _columns(given: Sequence[str]) -> TableColumns:
    columns: dict[str, Any] = {}
    for one in given:
        key, equals, name = one.partition("=")
        if not equals or key not in TableColumns.model_fields:
            raise ValueError(
                f"--columns {one}: give KEY=NAME with KEY one of {', '.join(TableColumns.model_fields)}, and NAME a "
                "column of the table (empty: it has none)"
            )
        columns[key] = tuple(name.split(",")) if key == "options" and "," in name else name
    return TableColumns(**columns)


if __name__ == "__main__":
    sys.exit(main())
