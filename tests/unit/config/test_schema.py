"""What follows from several sections."""

from __future__ import annotations

from typing import Any

import pytest

from medr1_ray.config import Config


def config(**sections: Any) -> Config:
    whole = {"run": {"dir": "x"}, "data": {"format": "phantoms", "root": "x"}, "train": {"steps": 1}}
    return Config.model_validate(whole | sections)


def test_the_parity_limit_follows_the_dtype_unless_it_is_set() -> None:
    assert config().gap_mean_limit == 1e-3
    assert config(model={"dtype": "bfloat16"}).gap_mean_limit == 2e-2
    assert config(model={"dtype": "bfloat16"}, parity={"gap_mean_limit": 0.5}).gap_mean_limit == 0.5


def test_supervised_training_has_one_completion_a_prompt_and_no_kl() -> None:
    reinforced = config(loss={"kl_beta": 0.1}, train={"steps": 1, "group_size": 4})
    assert (reinforced.takes_kl, reinforced.completions_per_prompt) == (True, 4)
    assert not config(loss={"kl_beta": 0}).takes_kl
    supervised = config(objective="sft", loss={"kl_beta": 0.1}, train={"steps": 1, "group_size": 4})
    assert (supervised.takes_kl, supervised.completions_per_prompt) == (False, 1)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().train.steps = 2  # type: ignore[misc]
