"""Images whose encoder was on a node that is gone: Ray has them made again, for whoever asks."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medr1_ray.config import Config
from medr1_ray.data.encoding import PromptEncoder
from medr1_ray.types import Prompt, Question, pixels_of
from tests.integration.encoders.losing_nodes import ENCODERS, read_after_loss

SIZE = 384
"""Ray sends objects under 100 kB along with answers; one of 384 pixels lies on the node where it was made."""


# Beside another Ray cluster on two busy cores its encoder is ended before it runs, in three of six runs, as if nobody
# had its handle, which the driver has; why is not known yet (docs/log.md).
@pytest.mark.skipif("MEDR1_LOST_NODES" not in os.environ, reason="needs a quiet machine; set MEDR1_LOST_NODES=1")
def test_images_are_made_again_as_soon_as_there_is_another_node(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "run": {"dir": tmp_path / "run"},
            "data": {"format": "phantoms", "root": "unused", "image_size": SIZE},
            "train": {"steps": 1},
            "cluster": {"labels": {"encoder": ENCODERS}},
        }
    )
    first = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "none")
    questions = []
    for i in range(2):
        Image.new("RGB", (30, 20), (60 + 100 * i, 0, 0)).save(tmp_path / f"{i}.png")
        questions.append(replace(first, id=f"q{i}", image_path=str(tmp_path / f"{i}.png")))
    # Of its own, because a process has one Ray.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as driver:
        found = driver.submit(read_after_loss, config, questions).result()
    local = PromptEncoder.of(config)
    expected = [local.encode(question, question.id) for question in questions]
    assert len(found) == len(expected) == 2
    for pixels, prompt in zip(found, expected, strict=True):
        assert isinstance(prompt, Prompt)
        assert pixels.shape == (SIZE, SIZE, 3)
        assert np.array_equal(pixels, pixels_of(prompt.image))
