"""Writing the pictures of DICOM files and NIfTI volumes that a table names to PNG files, once each."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm  # type: ignore[import-untyped]

from medr1_ray.base.atomic_files import publish
from medr1_ray.base.signs_of_life import repeating
from medr1_ray.data.prepare.image_facts import ImageFacts, stamp
from medr1_ray.data.prepare.image_scan import batches, each_in_time, run_checks
from medr1_ray.data.prepare.medical_images import read_medical_image, refuse_missing_package
from medr1_ray.data.questions import RowError
from medr1_ray.data.readers.rows import refuse_missing_image
from medr1_ray.data.readers.views import MedicalFormat, View, medical_format, refuse_view_of_image, split_view

Window = tuple[float, float]

_REMARK = "remark"
"""Key of the text in a PNG file that says what is unusual about it, so that it need not be written anew for that."""

_SOURCE = "source"
"""Key of the text in a PNG file that says, as a digest, what it was made from: a path may name a patient."""


def write_converted(
    root: Path,
    paths: Sequence[str],
    window: Window | None,
    folder: Path,
    workers: int,
    seconds: float,
) -> dict[str, ImageFacts]:
    """Write the pictures at `paths`, relative to `root` and without duplicates, into `folder`; copy ordinary images.

    Returns what became of each; usable ones have the name of their file in `folder` as `path`. `window` is for paths
    that name none. Pictures that an earlier call wrote are kept unless their source (path, size, modification time; of
    ordinary images the content) or window has changed. One that takes longer than `seconds` is left out.

    Raises:
        ValueError: if a package that reads one of them is not installed.
        RuntimeError: several in a row take longer.
    """
    # In the order of files, so that their slices come one after the other.
    paths = sorted(paths)
    for kind, path in {medical_format(root / split_view(path)[0]): path for path in paths}.items():
        if kind:
            refuse_missing_package(kind, path)
    found: dict[str, ImageFacts] = {}
    quiet = 0.1 if sys.stderr.isatty() else 10
    bar = tqdm(total=len(paths), desc="writing images", unit="image", mininterval=quiet)
    with bar, repeating(bar.refresh):
        write = partial(each_in_time, partial(write_picture, root, window, folder), seconds)
        for some in run_checks(write, batches(paths), workers):
            found |= {facts.path: facts for facts in some}
            bar.update(len(some))
    return {path: replace(facts, path=_name(root, path, window)[0]) for path, facts in found.items()}


def _name(root: Path, path: str, window: Window | None) -> tuple[str, View]:
    """Return the name of a picture's file, which is that of its source with whatever is shown of it, and the view."""
    file, view = split_view(path)
    if medical_format(root / file) is None:
        return path, view
    view = replace(view, window=view.window or window)
    center, width = view.window or (None, None)
    axis = None if view.axis == View.axis else view.axis
    shown = {"frame": view.frame, "slice": view.slice, "axis": axis, "center": center, "width": width}
    parts = ",".join(f"{key}={value:.12g}" for key, value in shown.items() if value is not None)
    return f"{file}.{parts}.png" if parts else f"{file}.png", view


def write_picture(root: Path, window: Window | None, folder: Path, path: str) -> ImageFacts:
    """Write one picture into `folder`; the facts have its path as it was given, and say if its source is not usable.

    Raises:
        OSError: if it cannot be written.
    """
    file, _ = split_view(path)
    name, view = _name(root, path, window)
    source, target = root / file, folder / name
    size, modified = stamp(root, file)
    facts = ImageFacts(path, size, modified)
    kind = medical_format(source)
    made_from = blake2b(repr((str(source.absolute()), size, modified, view)).encode(), digest_size=16).hexdigest()
    try:
        refuse_missing_image(root, str(source.absolute()))
        refuse_view_of_image(source, path)
        if kind and target.is_file() and (texts := _texts_in(target)).get(_SOURCE) == made_from:
            return replace(facts, remark=texts.get(_REMARK) or None)
        content, remark = _png_of(source, kind, view, made_from) if kind else (source.read_bytes(), None)
        if not kind and target.is_file() and target.read_bytes() == content:
            return facts
    except RowError as reason:
        return replace(facts, left_out=str(reason))
    except (ValueError, OSError) as error:
        return replace(facts, left_out="image cannot be decoded", remark=" ".join(str(error).split()))
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as partial_file:
        # With a time of its own: by that and its size the check of images tells that it is new.
        partial_file.write_bytes(content)
    return replace(facts, remark=remark)


def _png_of(source: Path, kind: MedicalFormat, view: View, made_from: str) -> tuple[bytes, str | None]:
    picture, remarks = read_medical_image(source, kind, view)
    remark = "; ".join(remarks)
    text = PngInfo()
    text.add_text(_REMARK, remark)
    text.add_text(_SOURCE, made_from)
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=text)
    return content.getvalue(), remark or None


def _texts_in(path: Path) -> dict[str, str]:
    """Return the texts of a PNG file in our folder; none of one that is damaged, which is then written anew."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return {str(key): str(value) for key, value in picture.info.items()}
    except (OSError, SyntaxError, ValueError):
        return {}
