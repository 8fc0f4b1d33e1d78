"""Phantoms on disk, in OmniMedVQA's own layout."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from medr1_ray.data.phantoms.drawing import draw
from medr1_ray.data.phantoms.facts import MODALITIES, PhantomFacts, random_facts
from medr1_ray.data.phantoms.questions import PhantomQuestion, ask

#: To be raised with every change that alters a picture or a question for a given seed.
GENERATOR_VERSION = 1
MANIFEST = "phantoms.json"

_MODALITY_TYPE = {
    "CT": "CT(Computed Tomography)",
    "MRI": "MR (Mag-netic Resonance Imaging)",
    "X-ray": "X-Ray",
    "Ultrasound": "ultrasound",
    "Fundus photography": "Fundus Photography",
    # The real files lack the closing bracket too.
    "OCT": "OCT (Optical Coherence Tomography",
    "Dermoscopy": "Dermoscopy",
    "Microscopy": "Microscopy Images",
}
_ENDINGS = ("png", "jpg", "bmp")
_FACTS, _QUESTIONS, _IMAGE = range(3)


def phantom_rng(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The generator of phantom `index` for one purpose: 0 its facts, 1 its questions, 2 its image, and from 3
    on whatever else is to be drawn about it (a description, say) without changing the others."""
    return np.random.default_rng([seed, index, purpose])


def phantom_facts(seed: int, index: int) -> PhantomFacts:
    """The facts of phantom `index` of a dataset: modality number `index` mod 8, all else by chance."""
    return random_facts(phantom_rng(seed, index, _FACTS), MODALITIES[index % len(MODALITIES)])


def phantom_questions(seed: int, index: int) -> list[PhantomQuestion]:
    """The questions about phantom `index` of a dataset, without drawing it."""
    return ask(phantom_facts(seed, index), phantom_rng(seed, index, _QUESTIONS))


def write_dataset(out: Path, images: int, seed: int, size: int = 112) -> None:
    """Write `images` phantoms with all their questions to the directory `out`.

    There is one dataset per modality, such as "Phantom CT": `Images/<dataset>/` holds pictures of `size`
    pixels on the longer side (png, jpg or bmp), `QA_information/Open-access/<dataset>.json` the questions.
    `out` comes into being only once all is written; `phantoms.json` in it says with which parameters. A
    phantom depends on the seed and its index, not on how many there are.

    Raises:
        ValueError: if `images` is below 1, `seed` below 0, `size` below 56, or `out` is no empty directory.
    """
    manifest = _manifest(images, seed, size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out is {str(out)!r}, which is there and not an empty directory; it must be new or empty: "
            "choose another path, or delete what is there"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.partial-") as folder:
        root = Path(folder) / "dataset"
        rows: dict[str, list[dict[str, str]]] = {}
        for index in range(images):
            _write_phantom(root, rows, seed, index, size)
        (root / "QA_information" / "Open-access").mkdir(parents=True)
        for dataset, entries in rows.items():
            _write_json(root / "QA_information" / "Open-access" / f"{dataset}.json", entries)
        _write_json(root / MANIFEST, {**manifest, "questions": sum(map(len, rows.values()))})
        os.replace(root, out)


def ensure_dataset(out: Path, images: int, seed: int, size: int = 112) -> None:
    """Write the dataset as `write_dataset` does unless `out` holds it already.

    Raises:
        ValueError: if `out` holds phantoms of other parameters or anything else, and as `write_dataset` does.
    """
    wanted = _manifest(images, seed, size)
    if not (out / MANIFEST).is_file():
        try:
            return write_dataset(out, images, seed, size)
        except OSError:
            # Another run may have written it meanwhile; what it wrote is looked at as if it had been there.
            if not (out / MANIFEST).is_file():
                raise
    found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    differences = [
        f"{key} {found.get(key)!r} (asked for: {value!r})"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differences:
        raise ValueError(
            f"out is {str(out)!r}, which holds phantoms with {', '.join(differences)}; ask for those, "
            "choose another directory, or delete this one to have it written anew"
        )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _manifest(images: int, seed: int, size: int) -> dict[str, int]:
    for key, value, least in (("images", images, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{key} is {value}; it must be at least {least}: give a larger number")
    return {"images": images, "seed": seed, "size": size, "generator_version": GENERATOR_VERSION}


def _write_phantom(
    root: Path, rows: dict[str, list[dict[str, str]]], seed: int, index: int, size: int
) -> None:
    facts = phantom_facts(seed, index)
    dataset = f"Phantom {facts.modality}"
    rng = phantom_rng(seed, index, _IMAGE)
    picture = Image.fromarray(draw(facts, rng, size))
    image_path = f"Images/{dataset}/{index:06d}.{_ENDINGS[int(rng.integers(len(_ENDINGS)))]}"
    (root / image_path).parent.mkdir(parents=True, exist_ok=True)
    # Pillow takes from these what the format knows and leaves the rest.
    picture.save(root / image_path, quality=95, compress_level=3)
    for number, question in enumerate(phantom_questions(seed, index)):
        rows.setdefault(dataset, []).append(
            {
                "dataset": dataset,
                "question_id": f"{dataset}_{index:06d}_{number}",
                "question_type": question.question_type,
                "question": question.stem,
                "gt_answer": question.answer,
                "image_path": image_path,
                **{
                    f"option_{letter}": option
                    for letter, option in zip("ABCD", question.options, strict=False)
                },
                "modality_type": _MODALITY_TYPE[facts.modality],
            }
        )
