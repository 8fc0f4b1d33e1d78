"""Phantoms: procedural medical images of all eight modalities with multiple-choice questions about them.

They stand in for OmniMedVQA where its images must not be redistributed: in tests, in demonstrations, and to pre-train
the tiny model. A phantom is defined by its `PhantomFacts`; `draw` makes the picture, `describe` a line of text, `ask`
the questions, and `write_dataset` a directory in OmniMedVQA's own layout. Over all modalities together, no option text
is a better guess than another without the image.
"""

from medr1_ray.data.phantoms.drawing import draw
from medr1_ray.data.phantoms.facts import (
    ANATOMIES,
    GRADES,
    LOCATIONS,
    MODALITIES,
    PhantomFacts,
    describe,
    random_facts,
)
from medr1_ray.data.phantoms.questions import QUESTION_TYPES, PhantomQuestion, ask
from medr1_ray.data.phantoms.write import (
    ensure_dataset,
    phantom_facts,
    phantom_questions,
    phantom_rng,
    write_dataset,
)

__all__ = [
    "ANATOMIES",
    "GRADES",
    "LOCATIONS",
    "MODALITIES",
    "QUESTION_TYPES",
    "PhantomFacts",
    "PhantomQuestion",
    "ask",
    "describe",
    "draw",
    "ensure_dataset",
    "phantom_facts",
    "phantom_questions",
    "phantom_rng",
    "random_facts",
    "write_dataset",
]
