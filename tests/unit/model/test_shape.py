"""The shape of a model, from its config.json alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.model.shape import ModelShape, TowerShape, read_shape
from tests.repository import REPOSITORY
from tests.unit.sizing.recipes import LANGUAGE_2B, PARAMETERS_2B, VISION_2B, VISION_TOWER_2B

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_shape(CONFIGS / "models/qwen2_vl_2b")


def test_shape_of_qwen2_vl_2b(shape: ModelShape) -> None:
    assert (shape.parameters, shape.vision_parameters) == (PARAMETERS_2B, VISION_2B)
    assert (shape.language, shape.vision) == (LANGUAGE_2B, VISION_TOWER_2B)
    assert (shape.key_value_width, shape.vocabulary) == (2 * 128, 151_936)


def test_shape_of_qwen2_5_vl_3b() -> None:
    shape = read_shape(CONFIGS / "models/qwen2_5_vl_3b")
    assert shape.parameters == 3_754_622_976
    assert shape.language == TowerShape(layers=36, hidden=2048, intermediate=11_008, gated=True, fused=False)
    assert shape.vision == TowerShape(layers=32, hidden=1280, intermediate=3420, gated=True, fused=True)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json: give the checkpoint's folder as model\.path"):
        read_shape(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="'qwen2'; allowed: qwen2_vl, qwen2_5_vl"):
        read_shape(tmp_path)


@pytest.mark.parametrize(("size", "patches"), [(384, 28**2), (392, 28**2), (84, 6**2), (28, 2**2)])
def test_images_are_rounded_to_whole_visual_tokens(shape: ModelShape, size: int, patches: int) -> None:
    assert shape.patches(size) == patches
