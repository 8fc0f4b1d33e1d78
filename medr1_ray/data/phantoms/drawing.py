"""Drawing of a phantom's picture from its facts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medr1_ray.data.phantoms import echo, optical, projection, tomography
from medr1_ray.data.phantoms.canvas import Array, Canvas, new_canvas
from medr1_ray.data.phantoms.facts import PhantomFacts
from medr1_ray.data.phantoms.lesion import Lesion, place_lesion

MIN_SIZE, MAX_SIZE = 56, 4096

_PAINTERS: dict[tuple[str, str], Callable[[Canvas, Lesion], Array]] = {
    ("CT", "Chest"): tomography.ct_chest,
    ("CT", "Abdomen"): tomography.ct_abdomen,
    ("MRI", "Brain"): tomography.mri_brain,
    ("MRI", "Knee"): tomography.mri_knee,
    ("X-ray", "Chest"): projection.xray_chest,
    ("X-ray", "Hand"): projection.xray_hand,
    ("Ultrasound", "Liver"): echo.ultrasound_liver,
    ("Ultrasound", "Heart"): echo.ultrasound_heart,
    ("OCT", "Macula"): echo.oct_macula,
    ("OCT", "Cornea"): echo.oct_cornea,
    ("Fundus photography", "Macula"): optical.fundus_macula,
    ("Fundus photography", "Optic disc"): optical.fundus_disc,
    ("Dermoscopy", "Scalp"): optical.dermoscopy_scalp,
    ("Dermoscopy", "Sole"): optical.dermoscopy_sole,
    ("Microscopy", "Blood"): optical.microscopy_blood,
    ("Microscopy", "Prostate"): optical.microscopy_prostate,
}


def draw(facts: PhantomFacts, rng: np.random.Generator, size: int = 112) -> NDArray[np.uint8]:
    """Draw one phantom.

    Shapes are laid out relative to the image's own width and height, so that an image squashed to a square shows them
    undistorted. In that square a lesion has a diameter of about 1/12 (Mild), 1/6.5 (Moderate) or 1/4 (Severe) of the
    side, with none, two or five small ones around it. Everything except the lesion depends only on modality, anatomy
    and `rng`: from the same generator state, pictures with and without a lesion differ only in the lesion.

    Args:
        facts: what to show.
        rng: source of all variation.
        size: longer side in pixels, at least 56; the shorter side has 80 to 100 % of it.

    Returns:
        The image, uint8 RGB [H, W, 3]; grey modalities have three equal channels.

    Raises:
        ValueError: if `size` is below 56 or above 4096.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(
            f"size is {size}; it must be at least {MIN_SIZE} pixels, because mild lesions vanish below that, and at "
            f"most {MAX_SIZE}"
        )
    # A generator of its own, so that drawing a lesion does not change the random numbers of the rest.
    lesion_rng = np.random.default_rng(rng.integers(2**63))
    canvas = new_canvas(rng, size)
    lesion = place_lesion(facts, canvas, lesion_rng)
    image = _PAINTERS[facts.modality, facts.anatomy](canvas, lesion)
    exposure = rng.uniform(225, 255), rng.uniform(0, 12)
    levels = np.clip(image * np.float32(exposure[0]) + np.float32(exposure[1]), 0, 255).astype(np.uint8)
    channels = np.broadcast_to(levels, (3, *levels.shape[-2:]))
    return np.ascontiguousarray(channels.transpose(1, 2, 0))
