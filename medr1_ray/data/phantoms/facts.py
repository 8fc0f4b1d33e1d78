"""Facts that a phantom shows: the vocabulary, the facts of one image, and their random draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: The two anatomies of each modality. Names that can both be true of one picture are listed in `OVERLAPS`.
ANATOMIES: dict[str, tuple[str, str]] = {
    "CT": ("Chest", "Abdomen"),
    "MRI": ("Brain", "Knee"),
    "X-ray": ("Chest", "Hand"),
    "Ultrasound": ("Liver", "Heart"),
    "Fundus photography": ("Macula", "Optic disc"),
    "OCT": ("Macula", "Cornea"),
    "Dermoscopy": ("Scalp", "Sole"),
    "Microscopy": ("Blood", "Prostate"),
}
MODALITIES: tuple[str, ...] = tuple(ANATOMIES)
GRADES: tuple[str, ...] = ("Mild", "Moderate", "Severe")
LOCATIONS: tuple[str, ...] = ("Left", "Right", "Top", "Bottom")

#: Pairs in which one anatomy lies inside the other: they are never options of the same question.
OVERLAPS: tuple[frozenset[str], ...] = (frozenset({"Chest", "Heart"}), frozenset({"Abdomen", "Liver"}))


@dataclass(frozen=True)
class PhantomFacts:
    """The facts of one phantom image.

    `grade` is one of `GRADES` and `location` one of `LOCATIONS` if `lesion` is true; otherwise both are None.
    Locations are as seen by the viewer: Left is the left half of the image.

    Raises:
        ValueError: if a word is outside the vocabulary, or a grade or location contradicts `lesion`.
    """

    modality: str
    anatomy: str
    lesion: bool
    grade: str | None = None
    location: str | None = None

    def __post_init__(self) -> None:
        """Check every fact against the vocabulary."""
        _check("modality", self.modality, MODALITIES)
        _check("anatomy", self.anatomy, ANATOMIES[self.modality])
        _check("grade", self.grade, GRADES if self.lesion else (None,))
        _check("location", self.location, LOCATIONS if self.lesion else (None,))


def _check(key: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}; given the other facts, use one of {list(allowed)}")


def random_facts(rng: np.random.Generator, modality: str) -> PhantomFacts:
    """Draw the facts of one phantom at random, each uniformly and independently of the others.

    Half of the phantoms have a lesion.

    Raises:
        ValueError: if `modality` is not in `MODALITIES`.
    """
    _check("modality", modality, MODALITIES)
    anatomy = ANATOMIES[modality][int(rng.integers(2))]
    if rng.integers(2) == 0:
        return PhantomFacts(modality, anatomy, lesion=False)
    grade, location = GRADES[int(rng.integers(3))], LOCATIONS[int(rng.integers(4))]
    return PhantomFacts(modality, anatomy, lesion=True, grade=grade, location=location)


def describe(facts: PhantomFacts, rng: np.random.Generator) -> str:
    """Return a line that states all facts of a phantom, in one of several wordings.

    Example: "CT of the chest, severe lesion on the left."
    """
    modality = facts.modality if facts.modality in ("CT", "MRI", "X-ray", "OCT") else facts.modality.lower()
    anatomy = facts.anatomy.lower()
    finding = "no lesion"
    if facts.grade is not None and facts.location is not None:
        side = {
            "Left": "on the left",
            "Right": "on the right",
            "Top": "at the top",
            "Bottom": "at the bottom",
        }
        finding = f"{facts.grade.lower()} lesion {side[facts.location]}"
    wordings = (
        f"{modality} of the {anatomy}, {finding}.",
        f"{modality} of the {anatomy} with {finding}.",
        f"{modality} showing the {anatomy}: {finding}.",
        f"the {anatomy} in {modality}, {finding}.",
    )
    return wordings[int(rng.integers(len(wordings)))]
