"""Pictures of coloured shapes on a plain background, and everyday multiple-choice questions about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "Red": (215, 40, 40),
    "Green": (40, 170, 60),
    "Blue": (45, 80, 220),
    "Yellow": (235, 215, 50),
    "Purple": (150, 60, 180),
    "Orange": (240, 140, 30),
    "White": (245, 245, 245),
    "Pink": (245, 150, 190),
}
FORMS = ("Circle", "Square", "Triangle", "Diamond", "Cross", "Bar")
SIZES = ("Tiny", "Medium-sized", "Huge")
PLACES = ("Left", "Right", "Top", "Bottom")
COUNTS = ("One", "Two", "Three", "Four")
_RADIUS = {"Tiny": 0.07, "Medium-sized": 0.13, "Huge": 0.21}
_PLACE_CENTRES = {"Left": (0.24, 0.5), "Right": (0.76, 0.5), "Top": (0.5, 0.24), "Bottom": (0.5, 0.76)}
_MARGIN = 3  # supersampling: shapes are drawn at three times the size and shrunk, which smooths their edges


@dataclass(frozen=True)
class ShapeScene:
    """Facts of one picture: `count` equal shapes; a single one has a place, several are placed anywhere."""

    colour: str
    form: str
    size: str
    count: str
    place: str | None


@dataclass(frozen=True)
class Item:
    """A multiple-choice question without its image: `options[answer]` is correct, `because` is a short reason."""

    stem: str
    options: tuple[str, ...]
    answer: int
    because: str


def random_scene(rng: np.random.Generator) -> ShapeScene:
    """Draw the facts of a scene at random; three quarters of the scenes have a single shape."""
    count = "One" if rng.random() < 0.75 else COUNTS[int(rng.integers(1, 4))]
    return ShapeScene(
        colour=_pick(rng, tuple(COLOURS)),
        form=_pick(rng, FORMS),
        size=_pick(rng, SIZES) if count == "One" else _pick(rng, SIZES[:2]),
        count=count,
        place=_pick(rng, PLACES) if count == "One" else None,
    )


def draw_scene(scene: ShapeScene, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Return the picture of a scene, uint8 [size, size, 3]."""
    side = size * _MARGIN
    ground = rng.integers(0, 110, 3)
    picture = Image.new("RGB", (side, side), tuple(int(v) for v in ground))
    pen = ImageDraw.Draw(picture)
    fill = tuple(int(np.clip(v + rng.integers(-14, 15), 0, 255)) for v in COLOURS[scene.colour])
    radius = _RADIUS[scene.size] * float(rng.uniform(0.9, 1.12)) * side
    for x, y in _centres(scene, rng):
        _draw_form(pen, scene.form, x * side, y * side, radius, fill)
    small = np.asarray(picture.resize((size, size), Image.Resampling.BOX), np.float32)
    noise = rng.normal(0, float(rng.uniform(0, 8)), small.shape)
    return np.clip(small + noise, 0, 255).astype(np.uint8)


def scene_items(scene: ShapeScene, rng: np.random.Generator) -> list[Item]:
    """Return one question per fact of the scene, each with its options in random order."""
    size, colour, form = scene.size.lower(), scene.colour.lower(), scene.form.lower()
    several = scene.count != "One"
    noun = form + "s" if several else form
    items = [
        _choice(
            rng,
            _COLOUR_STEMS,
            tuple(COLOURS),
            scene.colour,
            f"The {noun} {'are' if several else 'is'} {colour}.",
        ),
        _choice(rng, _FORM_STEMS, FORMS, scene.form, f"It shows {scene.count.lower()} {colour} {noun}."),
        _choice(rng, _SIZE_STEMS, SIZES, scene.size, f"The {noun} {'are' if several else 'is'} {size}.", 3),
        _choice(rng, _COUNT_STEMS, COUNTS, scene.count, f"It shows {scene.count.lower()} {noun}."),
        _presence(rng, scene),
    ]
    if scene.place is not None:
        where = WHERE[scene.place]
        items.append(_choice(rng, _PLACE_STEMS, PLACES, scene.place, f"The {noun} is {where}.", 4))
    return items


def describe_scene(scene: ShapeScene) -> str:
    """Return a line that states all facts of the scene."""
    several = scene.count != "One"
    noun = scene.form.lower() + ("s" if several else "")
    where = "" if scene.place is None else f" {WHERE[scene.place]}"
    return f"{scene.count.lower()} {scene.size.lower()} {scene.colour.lower()} {noun}{where}."


WHERE = {"Left": "on the left", "Right": "on the right", "Top": "at the top", "Bottom": "at the bottom"}
_COLOUR_STEMS = (
    "What colour is the shape?",
    "Which colour do you see?",
    "What is the colour of this object?",
)
_FORM_STEMS = ("What shape is shown?", "Which shape do you see?", "What type of shape is this?")
_SIZE_STEMS = (
    "How large is the shape?",
    "What is the size of this shape?",
    "Which size does this shape have?",
)
_COUNT_STEMS = ("How many shapes are there?", "What is the number of shapes?")
_PLACE_STEMS = (
    "Where is the shape?",
    "In which part of the image is the shape?",
    "What is the position of the shape?",
)


def _presence(rng: np.random.Generator, scene: ShapeScene) -> Item:
    there = bool(rng.integers(2))
    by_colour = bool(rng.integers(2))
    names = tuple(COLOURS) if by_colour else FORMS
    truth = scene.colour if by_colour else scene.form
    asked = truth if there else _pick(rng, tuple(name for name in names if name != truth))
    thing = f"{asked.lower()} shape" if by_colour else asked.lower()
    stems = (
        f"Is there a {thing} in this image?",
        f"Does this image show a {thing}?",
        f"Is a {thing} visible here?",
    )
    noun = scene.form.lower() if scene.count == "One" else scene.form.lower() + "s"
    return _choice(
        rng, stems, ("Yes", "No"), "Yes" if there else "No", f"It shows {scene.colour.lower()} {noun}.", 2
    )


def _choice(
    rng: np.random.Generator,
    stems: tuple[str, ...],
    values: tuple[str, ...],
    truth: str,
    because: str,
    count: int = 0,
) -> Item:
    count = count or int(rng.integers(2, 5))
    others = [value for value in values if value != truth]
    offered = [others[k] for k in rng.choice(len(others), count - 1, replace=False)]
    answer = int(rng.integers(count))
    offered.insert(answer, truth)
    return Item(_pick(rng, stems), tuple(offered), answer, because)


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def _centres(scene: ShapeScene, rng: np.random.Generator) -> list[tuple[float, float]]:
    if scene.place is not None:
        x, y = _PLACE_CENTRES[scene.place]
        return [(x + float(rng.uniform(-0.06, 0.06)), y + float(rng.uniform(-0.06, 0.06)))]
    corners = [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)]
    chosen = rng.permutation(4)[: COUNTS.index(scene.count) + 1]
    return [(corners[k][0] + float(rng.uniform(-0.05, 0.05)), corners[k][1]) for k in chosen]


def _draw_form(
    pen: ImageDraw.ImageDraw, form: str, x: float, y: float, r: float, fill: tuple[int, ...]
) -> None:
    if form == "Circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif form == "Square":
        pen.rectangle((x - r * 0.88, y - r * 0.88, x + r * 0.88, y + r * 0.88), fill=fill)
    elif form == "Triangle":
        pen.polygon([(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill=fill)
    elif form == "Diamond":
        pen.polygon([(x, y - 1.2 * r), (x + 0.75 * r, y), (x, y + 1.2 * r), (x - 0.75 * r, y)], fill=fill)
    elif form == "Cross":
        pen.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill=fill)
        pen.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill=fill)
    else:
        pen.rectangle((x - 1.2 * r, y - r * 0.35, x + 1.2 * r, y + r * 0.35), fill=fill)
