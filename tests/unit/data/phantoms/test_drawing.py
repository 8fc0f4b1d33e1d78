"""Pictures show their facts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medr1_ray.data.phantoms import (
    ANATOMIES,
    GRADES,
    LOCATIONS,
    PhantomFacts,
    draw,
    phantom_facts,
    phantom_rng,
)

PLACES = [(modality, anatomy) for modality, pair in ANATOMIES.items() for anatomy in pair]


@pytest.mark.parametrize(("modality", "anatomy"), PLACES)
def test_an_image_is_a_function_of_facts_and_seed(modality: str, anatomy: str) -> None:
    facts = PhantomFacts(modality, anatomy, True, "Moderate", "Top")
    image = draw(facts, np.random.default_rng(3), size=100)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert max(image.shape[:2]) == 100
    assert min(image.shape[:2]) >= 80
    assert np.array_equal(image, draw(facts, np.random.default_rng(3), size=100))
    assert not np.array_equal(image[:80, :80], draw(facts, np.random.default_rng(4), size=100)[:80, :80])


@pytest.mark.parametrize(("modality", "anatomy"), PLACES)
def test_a_lesion_changes_the_image_where_it_lies_and_the_more_the_worse_it_is(
    modality: str, anatomy: str
) -> None:
    # In ultrasound a lesion casts a shadow below it, so the vertical position of the change says little.
    for location in LOCATIONS[:2] if modality == "Ultrasound" else LOCATIONS:
        for seed in range(3):
            healthy = draw(PhantomFacts(modality, anatomy, False), np.random.default_rng(seed)).astype(int)
            areas = []
            for grade in GRADES:
                facts = PhantomFacts(modality, anatomy, True, grade, location)
                ill = draw(facts, np.random.default_rng(seed))
                change = np.abs(ill - healthy).max(axis=2) > 25
                rows, columns = np.nonzero(change)
                x, y = columns.mean() / change.shape[1] * 2 - 1, rows.mean() / change.shape[0] * 2 - 1
                along = {"Left": -x, "Right": x, "Top": -y, "Bottom": y}[location]
                assert along > 0.3, (location, grade, seed)
                areas.append(change.mean())
            assert areas[1] > 1.8 * areas[0], (location, seed, areas)
            assert areas[2] > 1.5 * areas[1], (location, seed, areas)


def test_modalities_can_be_told_apart_by_their_colours_in_coarse_squares() -> None:
    def thumbnail(index: int) -> np.ndarray:
        image = Image.fromarray(draw(phantom_facts(11, index), phantom_rng(11, index, 2), size=64))
        return np.asarray(image.resize((12, 12), Image.Resampling.BOX), np.float64).ravel()

    thumbnails = np.array([thumbnail(index) for index in range(960)])
    # One centroid per anatomy, since the two anatomies of a modality do not look alike.
    places = np.array(
        [PLACES.index((f.modality, f.anatomy)) for f in (phantom_facts(11, k) for k in range(960))]
    )
    train, test = slice(0, 640), slice(640, 960)
    centroids = np.array([thumbnails[train][places[train] == k].mean(axis=0) for k in range(len(PLACES))])
    distances = ((thumbnails[test][:, None] - centroids) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) // 2 == places[test] // 2).mean() >= 0.9
