"""`python -m medr1_ray.data.prepare --table FILE --out DIR`: check a dataset once, write manifest and splits.

Reads a table, or with `--root` every annotation file of OmniMedVQA below `QA_information`, and every image that they
name. The manifest lists what cannot be used, with the reason. If interrupted, the same command continues where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from medr1_ray.base.command_line import ArgumentParser, Ending, run_to_status
from medr1_ray.base.signs_of_life import still
from medr1_ray.base.writable_folder import require_writable
from medr1_ray.config import (
    LARGEST_SEED,
    DataSettings,
    TableAnswers,
    TableColumns,
    as_path,
    require_lasting,
)
from medr1_ray.config.loading import load_config
from medr1_ray.data.decoding import IMAGE_SECONDS
from medr1_ray.data.prepare.grouping import Grouping, describe, regrouped
from medr1_ray.data.prepare.image_facts import ImageFacts
from medr1_ray.data.prepare.image_scan import facts_of_images
from medr1_ray.data.prepare.leakage import leakage
from medr1_ray.data.prepare.recipes import (
    empty_or_far,
    grouped_splits,
    own_splits,
    released_families,
    released_splits,
)
from medr1_ray.data.prepare.sources import Source, of_omnimedvqa, of_table
from medr1_ray.data.prepare.writing import (
    account_of,
    enter_folder,
    nothing_left_of,
    require_own_folder,
    write_prepared,
    write_split,
)
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.prepared import PARTS, Split
from medr1_ray.data.readers.table.reader import TableReader

ROWS_SHOWN = 5

OFTEN_GIVEN = """\
what is given most for a table:
  --image-root FOLDER             where its image paths start
  --columns answer=gold group=patient options=a,b,c
                                  columns without a usual name; NAME left empty: there is none
  --options yes no                the options of every row
  --groups images                 split image by image

The first rows are shown as they are understood, before the rest is read. Usual names, splits and published datasets
(--config): docs/data.md."""


@dataclass(frozen=True)
class Plan:
    """How to prepare: the folder to write, what groups images (None: what the source says), the folder of Med-R1's
    files, the seed of the splits, the number of processes, and how many seconds an image may take."""

    out: Path
    grouping: Grouping | None
    medr1: Path | None
    seed: int
    workers: int
    image_seconds: float


class NoRow(ValueError):
    """No row can be used."""


def prepare(source: Source, plan: Plan) -> None:
    """Check the images of a source; write its manifest and splits.

    Raises:
        ValueError: if no row can be used, a part that is needed is empty, or `medr1` holds no annotation files.
        RuntimeError: if several images in a row cannot be read in time.
    """
    if plan.medr1:
        released_families(plan.medr1)  # before hours of reading images
    started = time.monotonic()
    grouping = plan.grouping or source.grouping
    rows = regrouped(source.rows, grouping, source.files)
    paths = sorted({row.image_path for row in rows if row.image_path is not None})
    enter_folder(plan.out, source.name)
    facts = facts_of_images(source.root, paths, plan.out / "images.jsonl", plan.workers, plan.image_seconds)
    rows = [_with_image(row, facts) for row in rows]
    account = account_of(plan.out, source.root, rows)
    seconds = time.monotonic() - started
    print(
        f"{account['rows']} rows, {account['questions']} questions on {account['images']} images: "
        f"{seconds:.0f} s, {len(rows) / seconds:.0f} rows/s"
    )
    for what, title in (("left_out", "left out"), ("remarks", "used, but unusual")):
        for reason, rest in account[what].items():
            count, first = rest["rows"], rest["first"]
            more = ", ..." if count > len(first) else ""
            print(f"{title}: {count} row{'s' * (count != 1)}: {reason} ({', '.join(first)}{more})")
    if not account["questions"]:
        raise NoRow(
            "no row can be used, for the reasons above; mend the data or the arguments (--image-root: the folder that "
            "image paths start from; --columns; --table also reads answers that are letters or numbers) and run this "
            "again"
        )
    print(describe(rows, grouping))
    splits = list(own_splits(rows, source.parts) if source.parts else grouped_splits(rows, plan.seed))
    _require_both_sides(splits[0], rows, grouping)
    write_prepared(plan.out, source.root, rows)
    if plan.medr1:
        splits += released_splits(rows, source.root, plan.medr1)
    with still("comparing the parts of the splits"):
        _write_splits(plan.out, splits, rows)
    if not splits[0].parts["train"]:
        print(f"evaluate on it with --data {plan.out} --split {splits[0].name}/test (or another part)")
        return
    part = "" if splits[0].parts["validation"] else " data.eval_part=test"
    print(f"train on it with data.format=prepared data.root={plan.out} data.split={splits[0].name}{part}")


def _write_splits(out: Path, splits: Sequence[Split], rows: Sequence[ManifestRow]) -> None:
    """Write the splits, and print for each what is unusual in it."""
    by_id = {row.id: row for row in rows if row.left_out is None}
    for split in splits:
        parts = {part: [by_id[id_] for id_ in split.parts[part]] for part in PARTS}
        leakages = {part: leakage(parts["train"], parts[part]) for part in PARTS[1:]}
        digest = write_split(out, split, rows, leakages)
        counts = ", ".join(f"{part} {len(members)}" for part, members in parts.items())
        print(f"split {split.name}: {counts}; digest {digest}")
        for reason, count in split.left_out.items():
            print(f"  left out: {reason}: {count}")
        if unusual := empty_or_far(split, rows):
            print(f"  NOTE: {unusual}")
        for part, leak in leakages.items():
            if leak:
                print(f"  {part}: {leak.description}")


def _require_both_sides(split: Split, rows: Sequence[ManifestRow], grouping: Grouping) -> None:
    """Raise ValueError if there is nothing to evaluate on, or nothing to train on but in a benchmark."""
    if (split.parts["train"] or split.name == "own") and (split.parts["validation"] or split.parts["test"]):
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
        remark="; ".join(filter(None, (row.remark, image.remark))) or None,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = ArgumentParser(
        prog="python -m medr1_ray.data.prepare",
        description="Check a dataset once; write a manifest and splits.",
        epilog=OFTEN_GIVEN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--root", type=as_path, help="OmniMedVQA's folder, which holds QA_information and Images")
    data.add_argument("--table", type=as_path, help="a table: CSV, TSV, JSON (Lines), Parquet, or saved by `datasets`")
    data.add_argument(
        "--config",
        type=as_path,
        action="append",
        help="YAML with the settings of a table, such as those in configs/datasets; later files win",
    )
    parser.add_argument("settings", nargs="*", metavar="data.key=value", help="settings that win over those files")
    parser.add_argument(
        "--out", type=as_path, required=True, help="a new folder, or one that this command wrote earlier"
    )
    parser.add_argument("--image-root", type=as_path, help="folder of a table's images (default: the table's folder)")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="KEY=NAME",
        help=f"columns of a table without a usual name; keys: {', '.join(TableColumns.model_fields)}",
    )
    parser.add_argument(
        "--options", nargs="+", metavar="TEXT", help="the options of every row, e.g. yes no, if the table has none"
    )
    parser.add_argument(
        "--answers", choices=get_args(TableAnswers), help="what a table's answers are (default: found out)"
    )
    parser.add_argument(
        "--window",
        nargs=2,
        type=float,
        metavar=("CENTER", "WIDTH"),
        help="values of DICOM files and NIfTI volumes that are shown, for rows that name none (default: the file's)",
    )
    parser.add_argument(
        "--groups",
        choices=get_args(Grouping),
        help="what splits keep whole (default: a table's group column, else images; with --root what paths tell)",
    )
    parser.add_argument(
        "--medr1", type=as_path, help="folder of Med-R1's released annotation files, e.g. ROOT/Splits"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default: 0)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="number of processes that read images (default: number of cores)",
    )
    parser.add_argument(
        "--image-timeout",
        type=float,
        default=IMAGE_SECONDS,
        metavar="SECONDS",
        help=f"leave out an image that takes longer to read (default: {IMAGE_SECONDS:g}, as in a run)",
    )
    # Intermixed, so that settings may stand before, between and after the options.
    options = parser.parse_intermixed_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: give a number of 1 or more")
    if not 0 <= options.seed <= LARGEST_SEED:
        parser.error(f"--seed {options.seed}: give 0 or more, at most {LARGEST_SEED}")
    if not 0 < options.image_timeout < math.inf:
        parser.error(f"--image-timeout {options.image_timeout:g}: give a number of seconds above 0")

    def work(ending: Ending) -> int:
        ending.how_to_go_on = lambda: "the same command continues"
        # Before a table is read, or pictures of it are written there.
        require_lasting("--out", options.out)
        require_own_folder(options.out)
        require_writable(f"--out {options.out}", options.out)
        with nothing_left_of(NoRow, options.out):
            source = _source(options)
            given = options.out, options.groups, options.medr1, options.seed, options.workers, options.image_timeout
            prepare(source, Plan(*given))
        return 0

    return run_to_status(work)


def _source(options: argparse.Namespace) -> Source:
    """Return what is to be prepared; of a table, first print what its first rows are taken for."""
    configured = options.config or options.settings
    given = "--root" if options.root else "--table" if options.table else "--config"
    if not (options.root or options.table or configured):
        raise ValueError("nothing to prepare: give --table or --config for a table, or --root for OmniMedVQA's folder")
    for of, names in {"--table": ("image_root", "columns", "options", "answers"), "--root": ("medr1",)}.items():
        for name in names:
            if getattr(options, name) and of != given:
                raise ValueError(f"--{name.replace('_', '-')} is for {of}, not for {given}; leave it out")
    if configured and given != "--config":
        raise ValueError(f"{options.settings[0]} is for --config, not for {given}; leave it out")
    if options.root:
        if options.groups == "column":
            raise ValueError("--groups column is for --table; give paths or images with --root")
        if options.window:
            raise ValueError("--window is for tables of DICOM files and NIfTI volumes, not for --root; leave it out")
        with still(f"reading the annotation files below {options.root}"):
            return of_omnimedvqa(options.root)
    if options.window and not (all(map(math.isfinite, options.window)) and options.window[1] > 0):
        raise ValueError(f"--window {options.window[0]:g} {options.window[1]:g}: give two numbers, the width above 0")
    data = _data_settings(options)
    assert data.table is not None
    root = data.image_root or data.root
    reader = TableReader(data.table, data.root, root, images_needed=False)
    print("\n".join([f"the first rows of {reader.path}:", *reader.preview(ROWS_SHOWN)]), flush=True)
    if options.groups == "column" and reader.columns.group is None:
        raise ValueError(f"--groups column: {reader.path} has no group column; name it with --columns group=NAME")
    window = (options.window[0], options.window[1]) if options.window else None
    source = of_table(reader, root, options.out, window, options.workers, options.image_timeout)
    if options.groups == "column" and source.grouping != "column":
        raise ValueError(
            f"--groups column: the group column {reader.columns.group} of {reader.path} is empty; name another with "
            "--columns group=NAME"
        )
    return source


def _data_settings(options: argparse.Namespace) -> DataSettings:
    """Return the settings of the table that the options name or describe."""
    settings = list(options.settings)
    if options.table:
        table: Path = options.table.absolute()
        root = options.image_root or (table if table.is_dir() else table.parent)
        if not root.is_dir():
            raise ValueError(
                f"--image-root {root} is not a folder; give the one that the table's image paths start from"
            )
        given = {"file": str(table), "columns": _columns(options.columns), "answers": options.answers}
        settings = ["data.format=table", f"data.root={json.dumps(str(table.parent))}"]
        settings.append(f"data.image_root={json.dumps(str(root))}")
        settings.append(f"data.table={json.dumps(given | {'options': options.options or []})}")
    # What a run needs and preparing does not use.
    data = load_config(options.config or [], ["run.dir=unused", "train.steps=1", *settings]).data
    if data.format != "table":
        raise ValueError(
            f"data.format={data.format}: --config is for data.format=table; give OmniMedVQA's folder with --root"
        )
    for key, folder in (("root", data.root), ("image_root", data.image_root or data.root)):
        if not folder.is_dir():
            raise ValueError(f"data.{key}={folder} is not a folder; give the one of the table, or of its images")
    return data


def _columns(given: Sequence[str]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for one in given:
        key, equals, name = one.partition("=")
        if not equals or key not in TableColumns.model_fields:
            raise ValueError(
                f"--columns {one}: give KEY=NAME with KEY one of {', '.join(TableColumns.model_fields)}, and NAME a "
                "column of the table (empty: it has none)"
            )
        if key in columns:
            raise ValueError(f"--columns {one}: {key} is given twice; leave one of them out")
        columns[key] = tuple(name.split(",")) if key == "options" and "," in name else name
    return columns


if __name__ == "__main__":
    sys.exit(main())
