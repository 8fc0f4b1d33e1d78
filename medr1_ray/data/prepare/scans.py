"""Groups of images that belong together, as far as OmniMedVQA's paths tell patients, volumes and cropped pictures."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.splits import linked

# Patterns of patients in a file's stem, as OmniMedVQA's sources name their files in Med-R1's released rows.
_PATIENTS = [
    re.compile(rule)
    for rule in (
        r"(person\d+)_(?:bacteria|virus)_\d+",  # Kermany's chest X-rays: a patient
        r"((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?",  # the same, healthy
        r"((?:CNV|DME|DRUSEN|NORMAL)-\d+)-\d+",  # Kermany's OCT
        r"(PAT_\d+)_\d+_\d+",  # PAD-UFES-20
        r"SOB_[BM]_[A-Z]+-(\d+-\w+)-\d+-\d+",  # BreakHis: a slide at four magnifications
        r"(sj-\d+-\d+).*",  # malignant lymphoma
        r"(C\d+P\d+).*",  # NLM's malaria cells: a patient's smear
        r"(MIDRC-RICORD-1C-\d+-\d+)-.*",
        r"(.+)-p\d+-.+",  # Covid CT: figures of one publication
        r"(\d{8})_\d{3}",  # ChestX-ray14
        r"(\d+)_(?:left|right)(?:-\d+)?",  # EyePACS: two eyes
        r"(\d{7})[LR]",  # two knees
        r"(\d+)_[lr]\d",  # DeepDRiD: two eyes, several views
        r"Prime_FULL_Prime_FULL_(\d+-\d+)_.*",  # OLIVES: visits and both modalities
        r"TREX DME_([A-Z]+_\d+[A-Z])(?:OD|OS)_.*",
    )
]
_VOLUME = re.compile(r"(.*?)[ _-]*(?:slice|frame|crop)[ _-]*\d+|([A-Za-z]+\d+)_\d+")
_KERMANY = ("person", "IM-", "NORMAL2-IM-")
_MURA = re.compile(r"/(patient\d+)/study\d+_")
_MIAS = re.compile(r"mdb(\d+)")


def scan_of(image_path: str) -> str:
    """Return the patient, volume or picture that an image shows, as far as its path tells; otherwise the image itself.

    Images that differ only in the file extension count as one. Where the path tells nothing (RadImageNet, ISIC,
    Retinal OCT-C8 and others), slices of one patient cannot be recognised.
    """
    path = PurePosixPath(image_path)
    source = path.parts[1] if len(path.parts) > 2 else path.parts[0]
    if mura := _MURA.search(image_path):
        return f"{source}/{mura[1]}"
    if mias := _MIAS.fullmatch(path.stem):
        return f"{source}/pair-{(int(mias[1]) + 1) // 2}"  # 2n - 1 and 2n are the breasts of one patient
    for rule in _PATIENTS:
        if match := rule.fullmatch(path.stem):
            if match[1].startswith(_KERMANY):
                return match[1]  # without the source: three of OmniMedVQA's sources contain these images
            return f"{source}/{match[1]}"
    if volume := _VOLUME.fullmatch(path.stem):
        return str(path.parent / (volume[1] or volume[2] or ""))
    return str(path.with_suffix(""))


def proposal(image_paths: Collection[str]) -> str | None:
    """Return what groups the paths of images tell of, in a few words; None if each file is on its own."""
    sizes = Counter(map(scan_of, image_paths))
    return described(sizes) if len(sizes) < len(set(image_paths)) else None


def described(sizes: Counter[str]) -> str:
    """Return number, groups and the largest groups of images, given the number of images in each group."""
    largest = ", ".join(f"{name} with {count}" for name, count in sizes.most_common(3))
    return f"{sizes.total()} images in {len(sizes)} group{'s' * (len(sizes) != 1)}, the largest {largest}"


def groups_of(rows: Sequence[ManifestRow]) -> dict[str, list[ManifestRow]]:
    """Group rows (none left out) that are linked, directly or through others, by the same pixels or the same scan.

    The key is the smallest image hash in the group, which depends neither on paths nor on the order of the rows.
    """
    keys = linked([(f"hash:{row.image_hash}", f"scan:{row.scan}") for row in rows])
    groups: defaultdict[str, list[ManifestRow]] = defaultdict(list)
    for row, key in zip(rows, keys, strict=True):
        groups[key].append(row)
    return {min(str(row.image_hash) for row in members): members for members in groups.values()}
