"""The manifest: every row of a dataset, with the facts about its image and, if it was left out, the reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from medr1_ray.types import LETTERS, Question

MANIFEST_FILE = "manifest.parquet"


@dataclass(frozen=True)
class ManifestRow:
    """One row of an annotation file, or a whole file that could not be read (`row` is then None).

    The fields after `id`, `file` and `row` are None if they could not be determined.

    Args:
        id: unique id, the same as the question's.
        file: annotation file, relative to the dataset's root.
        image_path: relative to the dataset's root.
        image_hash: hash of the decoded pixels; copies under other names or in other encodings have the same one.
        perceptual_hash: 64 bits as hexadecimal digits; images that look alike differ in few of them.
        scan: the patient, volume or picture that the path names; images of the same scan belong together.
        left_out: why the row is not used as a question; None if it is used.
        remark: the decoder's message about an image that cannot be read, or what is unusual about one that can.
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
        """Return the question of a row that was read, whether or not its image is usable; `root` is the dataset's."""
        assert self.image_path is not None
        assert self.stem is not None
        assert self.options is not None
        assert self.gold_letter is not None
        assert self.modality is not None
        assert self.question_type is not None
        assert self.dataset is not None
        return Question(
            id=self.id,
            image_path=os.path.join(root, self.image_path),
            stem=self.stem,
            options=self.options,
            answer=LETTERS.index(self.gold_letter),
            modality=self.modality,
            question_type=self.question_type,
            dataset=self.dataset,
        )


def read_manifest(folder: Path) -> list[ManifestRow]:
    """Return the rows of the manifest in `folder`, in the order in which they were written.

    Raises:
        ValueError: if there is no manifest, or it is not one of this version.
    """
    # Not with `datasets`, which would first copy the table into a cache in the user's home.
    import pyarrow.parquet

    path = folder / MANIFEST_FILE
    try:
        columns = pyarrow.parquet.read_table(path).to_pydict()
        options = [tuple(texts) if texts is not None else None for texts in columns.pop("options")]
        rest = [columns[field.name] for field in fields(ManifestRow) if field.name != "options"]
    # pyarrow's ArrowInvalid is a ValueError.
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: cannot be read as a manifest ({error}); write one with `python -m medr1_ray.data.prepare`"
        ) from error
    names = [field.name for field in fields(ManifestRow) if field.name != "options"]
    return [
        ManifestRow(options=chosen, **dict(zip(names, values, strict=True)))
        for chosen, *values in zip(options, *rest, strict=True)
    ]


def digest_of(rows: Iterable[ManifestRow]) -> str:
    """Return a digest of 32 hexadecimal digits over the content of all rows, in their order."""
    content = hashlib.blake2b(digest_size=16)
    for row in rows:
        content.update(repr(tuple(asdict(row).values())).encode())
    return content.hexdigest()
