"""One record per family, and what becomes of a model of another one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import CONFIG_MAPPING

from medr1_ray.model.family import FAMILIES, family_of


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_record_agrees_with_transformers(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    family = family_of(config, "here")
    assert all(isinstance(getattr(config, name), int) for name in family.special_tokens)
    width, intermediate = family.vision_width(config.vision_config)
    assert width > 0
    assert intermediate > 0


def test_another_family_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="models/x holds a model of type 'llava'; allowed: qwen2_vl, qwen2_5_vl"):
        family_of(SimpleNamespace(model_type="llava"), "models/x")
