"""The recipe of Med-R1 and the shape of its model, Qwen2-VL-2B."""

from __future__ import annotations

from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.model.shape import TowerShape
from tests.repository import REPOSITORY

CONFIGS = REPOSITORY / "configs"
PARAMETERS_2B = 2_208_985_600
VISION_2B = 665_271_296


def recipe(*overrides: str) -> Config:
    return load_config([CONFIGS / "medr1_qwen2vl_2b_think.yaml"], overrides)


LANGUAGE_2B = TowerShape(layers=28, hidden=1536, intermediate=8960, gated=True, fused=False)
VISION_TOWER_2B = TowerShape(layers=32, hidden=1280, intermediate=5120, gated=False, fused=True)
