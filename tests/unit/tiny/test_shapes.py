"""Pictures of shapes show their scenes, and questions about them have the right answers."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medr1_ray.tiny.shapes import (
    COLOURS,
    COUNTS,
    FORMS,
    PLACES,
    SIZES,
    ShapeScene,
    describe_scene,
    draw_scene,
    random_scene,
    scene_items,
)


def shown(scene: ShapeScene, seed: int = 0) -> NDArray[np.bool_]:
    """Return where the picture of a scene has the scene's colour, at 168 pixels a side."""
    image = draw_scene(scene, np.random.default_rng(seed), 168).astype(int)
    return np.asarray(np.abs(image - COLOURS[scene.colour]).max(axis=2) < 45)


def blobs(mask: NDArray[np.bool_]) -> int:
    """Count the separate areas of more than ten pixels."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, 0
    while left:
        stack, size = [left.pop()], 0
        while stack:
            y, x = stack.pop()
            size += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        found += size > 10
    return found


@pytest.mark.parametrize("place", PLACES)
def test_a_single_shape_lies_where_it_is_said_to(place: str) -> None:
    for seed in range(3):
        rows, columns = np.nonzero(shown(ShapeScene("Red", "Circle", "Tiny", "One", place), seed))
        x, y = columns.mean() / 168 * 2 - 1, rows.mean() / 168 * 2 - 1
        along = {"Left": -x, "Right": x, "Top": -y, "Bottom": y}[place]
        across = y if place in ("Left", "Right") else x
        assert along > 0.3
        assert abs(across) < 0.2


@pytest.mark.parametrize("form", FORMS)
def test_sizes_can_be_told_apart(form: str) -> None:
    areas = [shown(ShapeScene("Blue", form, size, "One", "Left")).mean() for size in SIZES]
    # Radii of 0.07, 0.13 and 0.21, each 10 % more or less: areas are at least 1.8 times as large.
    assert areas[1] > 1.8 * areas[0] > 0
    assert areas[2] > 1.5 * areas[1]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("count", COUNTS)
def test_shapes_have_their_colour_and_number(colour: str, count: str) -> None:
    place = "Top" if count == "One" else None
    scene = ShapeScene(colour, "Square", "Tiny", count, place)
    assert blobs(shown(scene)) == COUNTS.index(count) + 1


def test_forms_can_be_told_apart() -> None:
    def outline(form: str) -> NDArray[np.float64]:
        rows, columns = np.nonzero(mask := shown(ShapeScene("Green", form, "Huge", "One", "Left"), seed=1))
        cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        return np.asarray(Image.fromarray(cut).resize((20, 20)), np.float64)

    for one, other in combinations(FORMS, 2):
        if {one, other} != {"Square", "Bar"}:  # cut to its edges and stretched, a bar is a square
            assert np.abs(outline(one) - outline(other)).mean() > 0.1, (one, other)
    heights = {form: np.ptp(np.nonzero(shown(ShapeScene("Red", form, "Huge", "One", "Left")))[0]) for form in FORMS}
    assert heights["Bar"] < 0.5 * heights["Square"]


def test_scenes_are_as_frequent_as_said() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(4000)]
    single = [scene for scene in scenes if scene.count == "One"]
    assert len(single) / 4000 == pytest.approx(0.75, abs=0.03)
    assert all((scene.place is None) == (scene.count != "One") for scene in scenes)
    assert {scene.size for scene in scenes if scene.count != "One"} == set(SIZES[:2]), "huge ones would overlap"
    for name, values in (("colour", COLOURS), ("form", FORMS), ("size", SIZES), ("place", PLACES)):
        counts = Counter(getattr(scene, name) for scene in single)
        assert len(counts) == len(values)
        assert all(count / len(single) == pytest.approx(1 / len(values), abs=0.03) for count in counts.values())


def test_questions_about_a_scene_have_its_facts_for_answers() -> None:
    rng, positions = np.random.default_rng(0), Counter[tuple[int, int]]()
    for _ in range(300):
        scene = random_scene(rng)
        items = scene_items(scene, rng)
        facts = [scene.colour, scene.form, scene.size, scene.count]
        assert [item.options[item.answer] for item in items[:4]] == facts
        assert len(items) == (6 if scene.place else 5)
        if scene.place:
            assert items[5].options[items[5].answer] == scene.place
            assert set(items[5].options) == set(PLACES)
        assert set(items[2].options) == set(SIZES)
        presence = items[4]
        named = [name for name in (*COLOURS, *FORMS) if f"a {name.lower()}" in presence.stem]
        assert len(named) == 1
        there = named[0] in (scene.colour, scene.form)
        assert presence.options[presence.answer] == ("Yes" if there else "No")
        for item in items:
            assert len(set(item.options)) == len(item.options)
            positions[len(item.options), item.answer] += 1
    for count in (2, 3, 4):  # the answer is equally likely at every position
        total = sum(positions[count, k] for k in range(count))
        assert all(positions[count, k] / total == pytest.approx(1 / count, abs=0.06) for k in range(count))


def test_a_description_says_every_fact() -> None:
    assert describe_scene(ShapeScene("Red", "Bar", "Huge", "One", "Bottom")) == "one huge red bar at the bottom."
    assert describe_scene(ShapeScene("Pink", "Diamond", "Tiny", "Three", None)) == "three tiny pink diamonds."
