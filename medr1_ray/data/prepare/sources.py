"""What is prepared: the rows of OmniMedVQA's annotation files, or of a table, not yet with facts about their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from medr1_ray.base.signs_of_life import still
from medr1_ray.data.prepare.converted_images import Window, write_converted
from medr1_ray.data.prepare.embedded_images import write_embedded
from medr1_ray.data.prepare.grouping import Grouping
from medr1_ray.data.prepare.image_facts import ImageFacts
from medr1_ray.data.prepare.scans import scan_of
from medr1_ray.data.prepare.writing import enter_folder
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.omnimedvqa import QUESTIONS, file_name, read_annotation_file
from medr1_ray.data.readers.rows import relative_path
from medr1_ray.data.readers.table.reader import TableReader, TableRow
from medr1_ray.data.readers.views import medical_format, split_view
from medr1_ray.types import Question


@dataclass(frozen=True)
class Source:
    """What is prepared.

    Args:
        name: path of the dataset's folder or of the table.
        rows: in their order.
        root: folder of their images.
        grouping: what groups these.
        parts: the part of each row, by id, if the data has parts.
        files: the file that an image was made from, if it was.
    """

    name: str
    rows: list[ManifestRow]
    root: Path
    grouping: Grouping
    parts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def of_omnimedvqa(root: Path) -> Source:
    """Return every row of the files below `QA_information`, including folders other than Open-access.

    Raises:
        ValueError: if there are no annotation files.
    """
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
            "and Images, or a table with --table"
        )
    rows = [row for file in files for row in _annotations(root, file)]
    return Source(str(root.absolute()), rows, root, "paths")


def of_table(
    reader: TableReader, root: Path, out: Path, window: Window | None, workers: int, seconds: float
) -> Source:
    """Return every row of a table; images that are in the table, or in files of scans, are written to files in `out`.

    Args:
        root: folder of the images that are files.
        window: center and width for scans whose row names none.
        workers: number of processes that read scans.
        seconds: how long one may take.

    Raises:
        ValueError: if the table cannot be read, or no row becomes a question.
        RuntimeError: several scans in a row take longer.
    """
    with still(f"reading {reader.path}"):
        table = reader.read()
    print(f"over all rows, {table.understood[-1]}")
    name = str(reader.path.absolute())
    enter_folder(out, name)  # not before: a table that cannot be used leaves nothing there
    order = {file.name: index for index, file in enumerate(reader.files)}
    rows = [ManifestRow(f"{row.file}:{row.row}", row.file, row.row, left_out=row.reason) for row in table.dropped]
    files: dict[str, str] = {}
    if reader.embedded:
        root = out / "images"
        images = write_embedded(reader, {(row.file, row.number) for row in table.rows}, root)
        rows += [_of_table_row(row, images[row.file, row.number]) for row in table.rows]
    else:
        paths = [relative_path(root, row.question.image_path) for row in table.rows]
        if any(medical_format(root / split_view(path)[0]) for path in paths):
            written = write_converted(root, list(set(paths)), window, out / "images", workers, seconds)
            root, files = out / "images", {written[path].path: split_view(path)[0] for path in paths}
            rows += [_of_scan_row(row, written[path]) for row, path in zip(table.rows, paths, strict=True)]
        else:
            rows += [_of_table_row(row, path) for row, path in zip(table.rows, paths, strict=True)]
    rows.sort(key=lambda row: (order[row.file], row.row))
    parts = {row.question.id: row.part for row in table.rows if row.part is not None}
    grouping: Grouping = "column" if table.has_groups else "images"
    return Source(name, rows, root, grouping, parts, files)


def _annotations(root: Path, file: Path) -> list[ManifestRow]:
    name, path = file_name(root, file), relative_path(root, file)
    if file.suffix != ".json":
        return [ManifestRow(path, path, None, left_out="file is no annotation file (.json)")]
    try:
        result = read_annotation_file(root, file, images_needed=False)
    except ValueError as error:
        return [ManifestRow(name, path, None, left_out="file cannot be read", remark=str(error))]
    rows = [ManifestRow(f"{name}:{row.row}", path, row.row, left_out=row.reason) for row in result.dropped]
    for question in result.questions:
        image = relative_path(root, question.image_path)
        rows.append(_row_of(question, path, int(question.id.rpartition(":")[2]), image, scan_of(image)))
    # Dropped rows and questions come from two lists; this restores the order of the file.
    return sorted(rows, key=lambda row: row.row or 0)


def _of_table_row(row: TableRow, image: str | RowError) -> ManifestRow:
    if isinstance(image, RowError):
        return ManifestRow(row.question.id, row.file, row.number, left_out=str(image))
    # A path cannot be the name of a group: it names a file.
    return _row_of(row.question, row.file, row.number, image, image if row.group is None else f"group {row.group}")


def _of_scan_row(row: TableRow, facts: ImageFacts) -> ManifestRow:
    if facts.left_out:
        return ManifestRow(row.question.id, row.file, row.number, left_out=facts.left_out, remark=facts.remark)
    return replace(_of_table_row(row, facts.path), remark=facts.remark)


def _row_of(question: Question, file: str, number: int, image: str, scan: str) -> ManifestRow:
    return ManifestRow(
        id=question.id,
        file=file,
        row=number,
        dataset=question.dataset,
        modality=question.modality,
        question_type=question.question_type,
        stem=question.stem,
        options=question.options,
        gold_letter=question.gold_letter,
        gold_text=question.options[question.answer],
        image_path=image,
        scan=scan,
    )
