"""The manifest: every row of a dataset with what is known of its image, and why it was left out where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from medr1_ray.types import LETTERS, Question

MANIFEST_FILE = "manifest.parquet"


@dataclass(frozen=True)
class ManifestRow:
    """One row of an annotation file, or a whole file that could not be read (`row` is None then).

    Args:
        id: unique; that of the question.
        file: the annotation file, relative to the dataset's root.
        image_path: relative to the dataset's root.
        image_hash: of the decoded pixels, so that copies under other names or encodings have the same.
        perceptual_hash: 64 bits in hexadecimal digits; images that look alike differ in few of them.
        scan: the patient, volume or picture that the path names; images with the same one belong together.
        left_out: why the row is no question; None for those that are. What follows `id`, `file` and `row` is None
            where it could not be found out.
        remark: what the decoder said of an image that cannot be read, or what is odd about one that can.
    """

    id: str
    file: str
    row: int | None
    dataset: str | None = None
    modality: str | None = None
    question_type: str | None = None
    stem: str | None = None
    options: tuple[str, ...] | None = None
    gold_letter: str | None = None
    gold_text: str | None = None
    image_path: str | None = None
    image_hash: str | None = None
    perceptual_hash: str | None = None
    width: int | None = None
    height: int | None = None
    scan: str | None = None
    left_out: str | None = None
    remark: str | None = None

    def question(self, root: Path) -> Question:
        """The question of a row that was read, whatever its image; `root` is the dataset's."""
        assert self.image_path is not None
        assert self.stem is not None
        assert self.options is not None
        assert self.gold_letter is not None
        assert self.modality is not None
        assert self.question_type is not None
        assert self.dataset is not None
        return Question(
            id=self.id,
            image_path=str(root / self.image_path),
            stem=self.stem,
            options=self.options,
            answer=LETTERS.index(self.gold_letter),
            modality=self.modality,
            question_type=self.question_type,
            dataset=self.dataset,
        )


def read_manifest(folder: Path) -> list[ManifestRow]:
    """The rows of the manifest in `folder`, in the order in which they were written.

    Raises:
        ValueError: if there is none, or it is no manifest of this version.
    """
    # Not through `datasets`, which would copy the table into a cache in the user's home first.
    import pyarrow.parquet

    path = folder / MANIFEST_FILE
    try:
        columns = pyarrow.parquet.read_table(path).to_pydict()
        options = [tuple(texts) if texts is not None else None for texts in columns.pop("options")]
        rest = [columns[field.name] for field in fields(ManifestRow) if field.name != "options"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: no manifest that can be read ({error}); write one with `python -m medr1_ray.data.prepare`"
        ) from error
    names = [field.name for field in fields(ManifestRow) if field.name != "options"]
    return [
        ManifestRow(options=chosen, **dict(zip(names, values, strict=True)))
        for chosen, *values in zip(options, *rest, strict=True)
    ]


def digest_of(rows: Iterable[ManifestRow]) -> str:
    """32 hexadecimal digits over all that the rows say, in their order."""
    content = hashlib.blake2b(digest_size=16)
    for row in rows:
        content.update(repr(tuple(asdict(row).values())).encode())
    return content.hexdigest()
