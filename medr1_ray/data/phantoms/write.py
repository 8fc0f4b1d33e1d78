"""Writing of phantoms to disk, in OmniMedVQA's own layout."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from medr1_ray.base.json_files import read_mapping
from medr1_ray.config import LARGEST_SEED
from medr1_ray.data.phantoms.drawing import draw
from medr1_ray.data.phantoms.facts import MODALITIES, PhantomFacts, random_facts
from medr1_ray.data.phantoms.questions import PhantomQuestion, ask

#: Increase this with every change that alters a picture or a question of a given seed.
GENERATOR_VERSION = 1
MANIFEST = "phantoms.json"

_ANOTHER = "choose another directory, or delete this one to write it again"
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
    """Return the random generator of phantom `index` for one purpose.

    Purposes are 0 for its facts, 1 for its questions, 2 for its image; numbers from 3 on are free for anything else
    (such as a description), which then does not change the others.
    """
    return np.random.default_rng([seed, index, purpose])


def phantom_facts(seed: int, index: int) -> PhantomFacts:
    """Return the facts of phantom `index` of a dataset: modality number `index` mod 8, the others at random."""
    return random_facts(phantom_rng(seed, index, _FACTS), MODALITIES[index % len(MODALITIES)])


def phantom_questions(seed: int, index: int) -> list[PhantomQuestion]:
    """Return the questions about phantom `index` of a dataset, without drawing it."""
    return ask(phantom_facts(seed, index), phantom_rng(seed, index, _QUESTIONS))


def write_dataset(out: Path, images: int, seed: int, size: int = 112) -> None:
    """Write `images` phantoms with all their questions to the directory `out`.

    There is one dataset per modality, such as "Phantom CT": `Images/<dataset>/` holds pictures of `size` pixels on the
    longer side (png, jpg or bmp), `QA_information/Open-access/<dataset>.json` the questions. `out` appears only when
    everything is written; `phantoms.json` in it records the parameters. A phantom depends on the seed and its index,
    not on the number of phantoms.

    Raises:
        ValueError: if `images` is below 1, `seed` below 0, `size` not from 56 to 4096, or `out` exists and is not an
            empty directory.
    """
    manifest = _manifest(images, seed, size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out is {str(out)!r}, which exists and is not an empty directory; choose another path, or delete it"
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
    """Write the dataset as `write_dataset` does, unless `out` already holds it.

    Raises:
        ValueError: if `out` holds phantoms with other parameters or anything else, and as `write_dataset`.
    """
    wanted = _manifest(images, seed, size)
    if not (out / MANIFEST).is_file():
        try:
            return write_dataset(out, images, seed, size)
        except OSError:
            # Another run may have written it since the check above; its dataset is then checked like an old one.
            if not (out / MANIFEST).is_file():
                raise
    found = read_mapping(out / MANIFEST, _ANOTHER)
    differences = [
        f"{key} {found.get(key)!r} (asked for: {value!r})"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differences:
        raise ValueError(
            f"out is {str(out)!r}, which holds phantoms with {', '.join(differences)}; ask for those parameters, "
            + _ANOTHER
        )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _manifest(images: int, seed: int, size: int) -> dict[str, int]:
    for key, value, least in (("images", images, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{key} is {value}; it must be at least {least}")
    if seed > LARGEST_SEED:
        raise ValueError(f"seed is {seed}; it must be at most {LARGEST_SEED}")
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
    # Pillow's writers ignore the options that their format does not have.
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
